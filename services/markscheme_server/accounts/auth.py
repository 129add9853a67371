"""Who may do what: keys are told apart, made, rotated and ended here.

A deployment is one organisation. Until its first key is made and while ``MARKSCHEME_API_KEY`` is not set it has one
user, who needs no key and may do everything. From then on every call needs a key: one of the database's, which speaks
for a team, or ``MARKSCHEME_API_KEY``, which is the operator's.

What a key may do, and what is set for its team, is remembered for :data:`REMEMBERED_S`, so a key that is revoked
anywhere opens nothing after that.
"""

import asyncio
import hmac
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme.vocabulary import SCOPES, Scope
from markscheme_server.domain import keys
from markscheme_server.domain.caller import OPERATOR, Caller
from markscheme_server.errors import Conflict, NotFound, Unauthorised, Unprocessable
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.ids import now
from markscheme_server.store.teams import (
    AuthenticatedKey,
    Erased,
    Key,
    Taken,
    Team,
    TeamStore,
    UnknownTeam,
)

REMEMBERED_S = 0.5
"""Half of the second within which a revocation, or another limit, reaches every worker."""
MOST_REMEMBERED = 10_000
NOTED_EVERY_S = 60.0
"""How exact ``last_used_at`` is: a write for each request would cost more than the rest of the check."""

log = structlog.get_logger()


class Authenticator:
    """The keys of a deployment. ``operator_key``: ``MARKSCHEME_API_KEY``; ``pepper``: ``MARKSCHEME_KEY_PEPPER``;
    ``guarded``: a key is asked for even where there is none yet; ``team_rpm``: the limit of teams without one of their
    own."""

    def __init__(
        self,
        store: TeamStore,
        *,
        operator_key: str | None,
        pepper: str | None,
        guarded: bool = False,
        team_rpm: int | None = None,
    ) -> None:
        self._store, self._pepper, self._team_rpm = store, pepper, team_rpm
        self._operator_key = operator_key.encode() if operator_key is not None else None
        self._known: dict[str, tuple[float, AuthenticatedKey | None]] = {}
        self._noted: dict[str, float] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._guarded = guarded or operator_key is not None
        self._operator, self._looked_at = OPERATOR, -REMEMBERED_S

    async def authenticate(self, token: str | None) -> Caller:
        """Who presents ``token`` (``None``: no key). Raises :class:`Unauthorised`, whose message says what to do."""
        if not self._guarded:
            await self._look()
        if not self._guarded:
            return self._operator
        if token is None:
            raise Unauthorised(
                "send a key as 'Authorization: Bearer mk_…' ('markscheme keys create' makes one)",
                code="no_key",
            )
        if self._operator_key is not None and hmac.compare_digest(
            token.encode(), self._operator_key
        ):
            await self._look()
            return self._operator
        if not keys.is_well_formed(token):
            raise Unauthorised(
                "this is not a key of this service; check that it was copied whole",
                code="malformed_key",
            )
        if self._pepper is None:
            raise Unauthorised(
                "this service cannot tell keys apart: its operator must set MARKSCHEME_KEY_PEPPER",
                code="unknown_key",
            )
        found = await self._find(keys.digest(token, self._pepper))
        if found is None:
            raise Unauthorised("there is no such key", code="unknown_key")
        key = found.key
        if key.revoked_at is not None:
            raise Unauthorised(f"the key {key.prefix}… was revoked", code="revoked_key")
        if not key.is_live(now()):
            raise Unauthorised(f"the key {key.prefix}… has expired", code="expired_key")
        self._note(key)
        return Caller(
            key.team, frozenset(key.scopes), key.prefix, self._limit(found.rpm), found.reuse_scope
        )

    async def create_team(self, name: str, *, actor: Actor) -> Team:
        """Make a team. Raises :class:`Conflict` when there is one of this name, or was."""
        try:
            team = await self._store.create(name, actor)
        except Erased as error:
            raise Conflict(
                f"{name!r} was the name of a team that was erased, and is given to no other",
                code="team_erased",
                param="name",
            ) from error
        except Taken as error:
            raise Conflict(
                f"there is a team {name!r} already", code="team_exists", param="name"
            ) from error
        log.info("team_created", team=name)
        return team

    async def limit_team(self, name: str, rpm: int | None, *, actor: Actor) -> Team:
        """Limit a team's requests a minute (``None``: as the deployment says). Raises :class:`NotFound`."""
        return await self.change_team(name, {"rpm": rpm}, actor=actor)

    async def change_team(self, name: str, values: Mapping[str, Any], *, actor: Actor) -> Team:
        """Set ``rpm``, ``reuse_scope`` or both of a team; ``None``: the default again. Raises :class:`NotFound`."""
        team = await self._store.change(name, values, actor)
        if team is None:
            raise _no_team(name, "name")
        log.info("team_changed", team=name, **values)
        return team

    async def create_key(
        self,
        team: str,
        scopes: Iterable[Scope],
        *,
        actor: Actor,
        label: str | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[str, Key]:
        """Make a key for a team: the key itself, which is never to be had again, and what is kept of it.

        Raises :class:`NotFound` for a team that there is not, and :class:`Unprocessable` where no pepper is set or
        ``expires_at`` has passed.
        """
        if self._pepper is None:
            raise Unprocessable(
                "the service has no pepper to store keys under: set MARKSCHEME_KEY_PEPPER",
                code="no_pepper",
            )
        if expires_at is not None:
            try:
                expires_at = expires_at.astimezone(UTC)
            except OverflowError as error:
                raise Unprocessable(
                    "this is no time that can be kept", code="invalid_value", param="expires_at"
                ) from error
        if expires_at is not None and expires_at <= now():
            raise Unprocessable("this time has passed", code="invalid_value", param="expires_at")
        chosen = set(scopes)
        ordered = tuple(scope for scope in SCOPES if scope in chosen)
        while True:
            secret = keys.new_key()
            key = Key(keys.prefix(secret), team, ordered, label, now(), expires_at, None, None)
            try:
                await self._store.add_key(key, keys.digest(secret, self._pepper), actor)
            except UnknownTeam as error:
                raise _no_team(team, "team") from error
            except Taken:  # another key begins with the same eight characters
                continue
            log.info("key_created", key=key.prefix, team=team, scopes=list(ordered))
            return secret, key

    async def rotate(self, named: str, *, overlap: timedelta, actor: Actor) -> tuple[str, Key]:
        """A new key with what the old one may do and as long a life; the old one, which is named as in
        :meth:`revoke`, goes on for ``overlap`` at most.

        Raises :class:`NotFound`, and :class:`Conflict` when the old one opens nothing any more.
        """
        old = await self._named(named)
        prefix = old.prefix
        if not old.is_live(now()):
            raise Conflict("this key has ended; make a new one", code="key_ended", param="prefix")
        until = now() + (old.expires_at - old.created_at) if old.expires_at is not None else None
        made = await self.create_key(
            old.team, old.scopes, label=old.label, expires_at=until, actor=actor
        )
        if not await self._store.replace(
            prefix, by=made[1].prefix, at=now() + overlap, actor=actor
        ):
            await self._store.revoke(
                made[1].prefix, actor
            )  # it was revoked meanwhile: so is what followed from it
            raise Conflict(
                "this key was revoked meanwhile; make a new one", code="key_ended", param="prefix"
            )
        log.info("key_rotated", key=prefix, to=made[1].prefix)
        return made

    async def revoke(self, named: str, *, actor: Actor) -> Key:
        """End a key now, named by the whole of it or by a beginning that no other key has.

        Raises :class:`NotFound`, and :class:`Conflict` where several keys begin so.
        """
        prefix = (await self._named(named)).prefix
        key = await self._store.revoke(prefix, actor)
        if key is None:
            raise _no_key()
        log.info("key_revoked", key=prefix, team=key.team)
        return key

    async def _named(self, named: str) -> Key:
        found = await self._store.keys_beginning(keys.prefix(named.strip()))
        if not found:
            raise _no_key()
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} keys begin so; give more of the key",
                code="ambiguous_key",
                param="prefix",
            )
        return found[0]

    async def teams(self) -> list[Team]:
        """Every team, by name."""
        return await self._store.all()

    async def keys(self, team: str | None = None) -> list[Key]:
        """Every key, or a team's, newest first."""
        return await self._store.keys(team)

    async def _look(self) -> None:
        """See whether a key is asked for (for good then: keys end, but their rows stay), and what is set for the
        operator's team."""
        if time.monotonic() - self._looked_at >= REMEMBERED_S:
            at = time.monotonic()
            any_key, rpm, reuse_scope = await self._store.look()
            self._guarded = any_key or self._guarded
            self._operator = replace(OPERATOR, rpm=self._limit(rpm), reuse_scope=reuse_scope)
            self._looked_at = at

    def _limit(self, own: int | None) -> int | None:
        return own if own is not None else self._team_rpm

    async def _find(self, digest: str) -> AuthenticatedKey | None:
        at, found = self._known.get(digest, (-REMEMBERED_S, None))
        if time.monotonic() - at < REMEMBERED_S:
            return found
        at = (
            time.monotonic()
        )  # before the question: what is revoked while it is answered is asked for in time
        found = await self._store.key(digest)
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[digest] = at, found
        return found

    async def drain(self) -> None:
        """Wait until it is kept when which key was last used."""
        await asyncio.gather(*self._notes)

    def _note(self, key: Key) -> None:
        """Keep when the key was last used, to the minute. The caller does not wait for it, nor for its failure."""
        if time.monotonic() - self._noted.get(key.prefix, -NOTED_EVERY_S) >= NOTED_EVERY_S:
            self._noted[key.prefix] = time.monotonic()
            task = asyncio.create_task(self._write_note(key.prefix))
            self._notes.add(task)
            task.add_done_callback(self._notes.discard)

    async def _write_note(self, prefix: str) -> None:
        with suppress(SQLAlchemyError, OSError):
            await self._store.used(prefix)


def _no_team(name: str, param: str) -> NotFound:
    return NotFound(f"there is no team {name!r}", code="team_not_found", param=param)


def _no_key() -> NotFound:
    return NotFound("there is no key of this prefix", code="key_not_found", param="prefix")
