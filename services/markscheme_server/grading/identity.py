"""Who may do what: keys are told apart, made, rotated and ended here.

A deployment is one organisation. Until its first key is made and while ``MARKSCHEME_API_KEY`` is not set it has one
user, who needs no key and may do everything. From then on every call needs a key: one of the database's, which speaks
for a team, or ``MARKSCHEME_API_KEY``, which is the operator's.

What a key may do is remembered for :data:`REMEMBERED_S`, so a key that is revoked anywhere opens nothing after that.
"""

import asyncio
import hmac
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme.vocabulary import SCOPES, Scope
from markscheme_server.domain import keys
from markscheme_server.domain.caller import OPERATOR, Caller
from markscheme_server.errors import Conflict, NotFound, Unauthorised, Unprocessable
from markscheme_server.store.ids import now
from markscheme_server.store.teams import Erased, Key, Taken, Team, TeamStore, UnknownTeam

REMEMBERED_S = 0.5
"""Half of the second within which a revocation reaches every worker."""
MOST_REMEMBERED = 10_000
NOTED_EVERY_S = 60.0
"""How exact ``last_used_at`` is: a write for each request would cost more than the rest of the check."""

log = structlog.get_logger()


class Identity:
    """The keys of a deployment. ``operator_key``: ``MARKSCHEME_API_KEY``; ``pepper``: ``MARKSCHEME_KEY_PEPPER``;
    ``guarded``: a key is asked for even where there is none yet."""

    def __init__(self, store: TeamStore, *, operator_key: str | None, pepper: str | None,
                 guarded: bool = False) -> None:
        self._store, self._pepper = store, pepper
        self._operator_key = operator_key.encode() if operator_key is not None else None
        self._known: dict[str, tuple[float, Key | None]] = {}
        self._noted: dict[str, float] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._guarded = guarded or operator_key is not None
        self._looked_at = -REMEMBERED_S

    async def authenticate(self, token: str | None) -> Caller:
        """Who presents ``token`` (``None``: no key). Raises :class:`Unauthorised`, whose message says what to do."""
        if not await self._is_guarded():
            return OPERATOR
        if token is None:
            raise Unauthorised("send a key as 'Authorization: Bearer mk_…' ('markscheme keys create' makes one)",
                               code="no_key")
        if self._operator_key is not None and hmac.compare_digest(token.encode(), self._operator_key):
            return OPERATOR
        if not keys.is_well_formed(token):
            raise Unauthorised("this is not a key of this service; check that it was copied whole",
                               code="malformed_key")
        if self._pepper is None:
            raise Unauthorised("this service cannot tell keys apart: its operator must set MARKSCHEME_KEY_PEPPER",
                               code="unknown_key")
        key = await self._find(keys.digest(token, self._pepper))
        if key is None:
            raise Unauthorised("there is no such key", code="unknown_key")
        if key.revoked_at is not None:
            raise Unauthorised(f"the key {key.prefix}… was revoked", code="revoked_key")
        if not key.is_live(now()):
            raise Unauthorised(f"the key {key.prefix}… has expired", code="expired_key")
        self._note(key)
        return Caller(key.team, frozenset(key.scopes), key.prefix)

    async def create_team(self, name: str) -> Team:
        """Make a team. Raises :class:`Conflict` when there is one of this name, or was."""
        try:
            team = await self._store.create(name)
        except Erased as error:
            raise Conflict(f"{name!r} was the name of a team that was erased, and is given to no other",
                           code="team_erased", param="name") from error
        except Taken as error:
            raise Conflict(f"there is a team {name!r} already", code="team_exists", param="name") from error
        log.info("team_created", team=name)
        return team

    async def create_key(self, team: str, scopes: Iterable[Scope], *, label: str | None = None,
                         expires_at: datetime | None = None) -> tuple[str, Key]:
        """Make a key for a team: the key itself, which is never to be had again, and what is kept of it.

        Raises :class:`NotFound` for a team that there is not, and :class:`Unprocessable` where no pepper is set or
        ``expires_at`` has passed.
        """
        if self._pepper is None:
            raise Unprocessable("the service has no pepper to store keys under: set MARKSCHEME_KEY_PEPPER",
                                code="no_pepper")
        if expires_at is not None:
            try:
                expires_at = expires_at.astimezone(UTC)
            except OverflowError as error:
                raise Unprocessable("this is no time that can be kept", code="invalid_value",
                                    param="expires_at") from error
        if expires_at is not None and expires_at <= now():
            raise Unprocessable("this time has passed", code="invalid_value", param="expires_at")
        chosen = set(scopes)
        ordered = tuple(scope for scope in SCOPES if scope in chosen)
        while True:
            secret = keys.new_key()
            key = Key(keys.prefix(secret), team, ordered, label, now(), expires_at, None, None)
            try:
                await self._store.add_key(key, keys.digest(secret, self._pepper))
            except UnknownTeam as error:
                raise NotFound(f"there is no team {team!r}", code="team_not_found", param="team") from error
            except Taken:  # another key begins with the same eight characters
                continue
            log.info("key_created", key=key.prefix, team=team, scopes=list(ordered))
            return secret, key

    async def rotate(self, prefix: str, *, overlap: timedelta) -> tuple[str, Key]:
        """A new key with what the old one may do and as long a life; the old one goes on for ``overlap`` at most.

        Raises :class:`NotFound`, and :class:`Conflict` when the old one opens nothing any more.
        """
        old = await self._store.key_named(prefix)
        if old is None:
            raise _no_key()
        if not old.is_live(now()):
            raise Conflict("this key has ended; make a new one", code="key_ended", param="prefix")
        until = now() + (old.expires_at - old.created_at) if old.expires_at is not None else None
        made = await self.create_key(old.team, old.scopes, label=old.label, expires_at=until)
        ended = await self._store.expire(prefix, now() + overlap)
        if ended is None or ended.revoked_at is not None:  # in the meantime: what followed from it ends too
            await self._store.revoke(made[1].prefix)
            raise Conflict("this key was revoked meanwhile; make a new one", code="key_ended", param="prefix")
        log.info("key_rotated", key=prefix, to=made[1].prefix)
        return made

    async def revoke(self, prefix: str) -> Key:
        """End a key now. Raises :class:`NotFound`."""
        key = await self._store.revoke(prefix)
        if key is None:
            raise _no_key()
        log.info("key_revoked", key=prefix, team=key.team)
        return key

    async def teams(self) -> list[Team]:
        """Every team, by name."""
        return await self._store.all()

    async def keys(self, team: str | None = None) -> list[Key]:
        """Every key, or a team's, newest first."""
        return await self._store.keys(team)

    async def _is_guarded(self) -> bool:
        """Whether a key is asked for. Once it is, it stays so: keys end, but their rows stay."""
        if not self._guarded and time.monotonic() - self._looked_at >= REMEMBERED_S:
            at = time.monotonic()
            self._guarded = await self._store.any_key() or self._guarded
            self._looked_at = at
        return self._guarded

    async def _find(self, digest: str) -> Key | None:
        at, key = self._known.get(digest, (-REMEMBERED_S, None))
        if time.monotonic() - at < REMEMBERED_S:
            return key
        at = time.monotonic()  # before the question: what is revoked while it is answered is asked for in time
        key = await self._store.key(digest)
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[digest] = at, key
        return key

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


def _no_key() -> NotFound:
    return NotFound("there is no key of this prefix", code="key_not_found", param="prefix")
