"""Authenticate callers, and create, rotate and revoke API keys.

A deployment is one organisation. Until its first key is made, and while `MARKSCHEME_API_KEY` is
not set, it has one user who needs no key and may do everything. From then on every call needs a
key: either one of the database's, which speaks for a team, or `MARKSCHEME_API_KEY`, which is the
operator's.

Keys and team settings are cached for `CACHE_S`, so a revoked key stops working everywhere within a
second.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme.vocabulary import SCOPES, Scope
from markscheme_server.accounts.unknown_team import unknown_team
from markscheme_server.domain import keys
from markscheme_server.domain.caller import OPERATOR, Caller
from markscheme_server.errors import Conflict, NotFound, Unauthorised, Unprocessable
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.ids import now
from markscheme_server.store.teams import (
    AuthenticatedKey,
    Key,
    NameErased,
    NameTaken,
    Team,
    TeamStore,
    UnknownTeam,
)

CACHE_S = 0.5
"""Half of the second within which a revocation, or another limit, reaches every worker."""
MAX_CACHED = 10_000
OPERATOR_REFERENCE = "operator"
"""Stands for the operator's key in a session."""
USE_INTERVAL_S = 60.0
"""Resolution of `last_used_at`: writing it for each request would cost more than the check."""

log = structlog.get_logger()


class Authenticator:
    """The teams and keys of a deployment.

    `operator_key`: `MARKSCHEME_API_KEY`. `pepper`: `MARKSCHEME_KEY_PEPPER`. `require_key`: refuse
    calls without a key even before the first key is made. `team_rpm`: requests per minute of teams
    without a limit of their own.
    """

    def __init__(
        self,
        store: TeamStore,
        *,
        operator_key: str | None,
        pepper: str | None,
        require_key: bool = False,
        team_rpm: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._pepper, self._team_rpm, self._clock = store, pepper, team_rpm, clock
        self._operator_key = operator_key.encode() if operator_key is not None else None
        self._cache: dict[str, tuple[float, AuthenticatedKey | None]] = {}
        self._use_recorded: dict[str, float] = {}
        self._recording: set[asyncio.Task[None]] = set()
        self._require_key = require_key or operator_key is not None
        self._operator, self._refreshed_at = OPERATOR, -CACHE_S

    async def authenticate(self, token: str | None) -> Caller:
        """Return the caller who presents `token` (`None`: no key).

        Raises `Unauthorised`, whose message says what to do.
        """
        if not await self.requires_key():
            return self._operator
        if token is None:
            raise Unauthorised(
                "send a key as 'Authorization: Bearer mk_…' ('markscheme keys create' makes one)",
                code="no_key",
            )
        return await self.resume(self.reference(token))

    async def requires_key(self) -> bool:
        """Return whether calls without a key are refused."""
        if not self._require_key:
            await self._refresh()
        return self._require_key

    def reference(self, token: str) -> str:
        """Return what stands for a key where the key itself must not be kept, for `resume`.

        Raises `Unauthorised` where the token cannot be a key. Whether there is such a key is not
        looked up.
        """
        # In constant time: the duration must not reveal how much of the key is right.
        if self._operator_key is not None and hmac.compare_digest(
            token.encode(), self._operator_key
        ):
            return OPERATOR_REFERENCE
        if not keys.is_well_formed(token):
            raise Unauthorised(
                "this is not a key of this service; check that it was copied whole",
                code="malformed_key",
            )
        if self._pepper is None:
            raise Unauthorised(
                "this service cannot check keys: its operator must set MARKSCHEME_KEY_PEPPER",
                code="unknown_key",
            )
        return keys.key_hash(token, self._pepper)

    async def resume(self, reference: str) -> Caller:
        """Return the caller with the key of this reference, by the key's state now.

        Raises `Unauthorised` where the key is unknown, revoked or expired.
        """
        if reference == OPERATOR_REFERENCE:
            await self._refresh()
            return self._operator
        found = await self._find_key(reference)
        if found is None:
            raise Unauthorised("there is no such key", code="unknown_key")
        key = found.key
        if key.revoked_at is not None:
            raise Unauthorised(f"the key {key.prefix}… was revoked", code="revoked_key")
        if not key.is_live(now()):
            raise Unauthorised(f"the key {key.prefix}… has expired", code="expired_key")
        self._record_use(key)
        return Caller(
            team=key.team,
            scopes=frozenset(key.scopes),
            key=key.prefix,
            rpm=self._rpm(found.rpm),
            reuse_scope=found.reuse_scope,
        )

    async def create_team(self, name: str, *, actor: Actor) -> Team:
        """Create a team. Raises `Conflict` when the name is, or was, another team's."""
        try:
            team = await self._store.create(name, actor)
        except NameErased as error:
            raise Conflict(
                f"the name {name!r} belonged to a team that was erased, and cannot be used again",
                code="team_erased",
                param="name",
            ) from error
        except NameTaken as error:
            raise Conflict(
                f"there is a team {name!r} already", code="team_exists", param="name"
            ) from error
        log.info("team_created", team=name)
        return team

    async def limit_team(self, name: str, rpm: int | None, *, actor: Actor) -> Team:
        """Set a team's requests per minute; `None`: the deployment's default. Raises `NotFound`."""
        return await self.change_team(name, {"rpm": rpm}, actor=actor)

    async def change_team(self, name: str, values: Mapping[str, Any], *, actor: Actor) -> Team:
        """Set `rpm`, `reuse_scope` or both of a team; `None`: the default. Raises `NotFound`."""
        team = await self._store.change(name, values, actor)
        if team is None:
            raise await unknown_team(self._store, name, "name")
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
        """Create an API key. Returns the plaintext, which cannot be read again, and its record.

        Raises `NotFound` for an unknown team, and `Unprocessable` if no pepper is set or
        `expires_at` has passed.
        """
        if self._pepper is None:
            raise Unprocessable(
                "the service cannot store keys without a pepper: set MARKSCHEME_KEY_PEPPER",
                code="no_pepper",
            )
        if expires_at is not None:
            try:
                # In UTC a time of the first or the last year may be out of range.
                expires_at = expires_at.astimezone(UTC)
            except OverflowError as error:
                raise Unprocessable(
                    "this time is out of range", code="invalid_value", param="expires_at"
                ) from error
        if expires_at is not None and expires_at <= now():
            raise Unprocessable(
                "this time is in the past", code="invalid_value", param="expires_at"
            )
        requested = set(scopes)
        ordered = tuple(scope for scope in SCOPES if scope in requested)
        while True:
            secret = keys.new_key()
            key = Key(keys.prefix(secret), team, ordered, label, now(), expires_at, None, None)
            try:
                await self._store.add_key(key, keys.key_hash(secret, self._pepper), actor)
            except UnknownTeam as error:
                raise await unknown_team(self._store, team, "team") from error
            except NameTaken:  # another key has the same prefix
                continue
            log.info("key_created", key=key.prefix, team=team, scopes=list(ordered))
            return secret, key

    async def rotate(self, named: str, *, overlap: timedelta, actor: Actor) -> tuple[str, Key]:
        """Replace a key, which is named as in `revoke`, by a new one.

        The new key has the same scopes and as long a life. The old one stays valid for `overlap`
        at most. Raises `NotFound`, and `Conflict` when the old key is no longer valid.
        """
        old = await self._find_named(named)
        prefix = old.prefix
        if not old.is_live(now()):
            raise Conflict(
                "this key has expired or was revoked; create a new one",
                code="key_ended",
                param="prefix",
            )
        until = None
        if old.expires_at is not None:
            try:
                until = now() + (old.expires_at - old.created_at)
            except OverflowError:  # to the end of the calendar, as for ever is often written
                until = old.expires_at
        # The new key comes first: a failure in between leaves two valid keys, not none.
        secret, new = await self.create_key(
            old.team, old.scopes, label=old.label, expires_at=until, actor=actor
        )
        if not await self._store.replace(prefix, by=new.prefix, at=now() + overlap, actor=actor):
            # The old key was revoked meanwhile, so the new one must not outlive it.
            await self._store.revoke(new.prefix, actor)
            raise Conflict(
                "this key was revoked meanwhile; create a new one", code="key_ended", param="prefix"
            )
        log.info("key_rotated", key=prefix, to=new.prefix)
        return secret, new

    async def revoke(self, named: str, *, actor: Actor) -> Key:
        """Revoke a key, named by all of it or by a beginning that no other key has.

        Raises `NotFound`, and `Conflict` if several keys have this beginning.
        """
        prefix = (await self._find_named(named)).prefix
        key = await self._store.revoke(prefix, actor)
        assert key is not None  # keys are marked, never deleted
        log.info("key_revoked", key=prefix, team=key.team)
        return key

    async def _find_named(self, named: str) -> Key:
        found = await self._store.keys_with_prefix(keys.prefix(named.strip()))
        if not found:
            raise _no_key()
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} keys begin like this; give more of the key",
                code="ambiguous_key",
                param="prefix",
            )
        return found[0]

    async def teams(self) -> list[Team]:
        """Return every team, by name."""
        return await self._store.all()

    async def keys(self, team: str | None = None) -> list[Key]:
        """Return every key, or those of a team, newest first. Raises `NotFound`."""
        found = await self._store.keys(team)
        if team is not None and not found and not await self._store.is_known(team):
            raise await unknown_team(self._store, team, "team")
        return found

    async def drain(self) -> None:
        """Wait until the uses of keys are recorded."""
        await asyncio.gather(*self._recording)

    async def _refresh(self) -> None:
        """Read whether keys are required, and the operator team's settings, unless cached.

        Once there was a key, keys are required for good: revoked keys stay in the database.
        """
        if self._clock() - self._refreshed_at >= CACHE_S:
            refreshed_at = self._clock()
            any_key, rpm, reuse_scope = await self._store.read_defaults()
            # Never back to false: the operator may have required keys before there was one.
            self._require_key = any_key or self._require_key
            self._operator = replace(OPERATOR, rpm=self._rpm(rpm), reuse_scope=reuse_scope)
            self._refreshed_at = refreshed_at

    def _rpm(self, own: int | None) -> int | None:
        return own if own is not None else self._team_rpm

    async def _find_key(self, key_hash: str) -> AuthenticatedKey | None:
        cached_at, found = self._cache.get(key_hash, (-CACHE_S, None))
        if self._clock() - cached_at < CACHE_S:
            return found
        # Count from before the query: a revocation while it runs must not be cached for longer.
        cached_at = self._clock()
        found = await self._store.key_by_digest(key_hash)
        # Unknown keys are cached too, so that guesses could otherwise fill the memory.
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[key_hash] = cached_at, found
        return found

    def _record_use(self, key: Key) -> None:
        """Write when the key was last used, to the minute, without making the caller wait."""
        if self._clock() - self._use_recorded.get(key.prefix, -USE_INTERVAL_S) >= USE_INTERVAL_S:
            self._use_recorded[key.prefix] = self._clock()
            task = asyncio.create_task(self._write_use(key.prefix))
            # The event loop keeps only weak references to tasks.
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)

    async def _write_use(self, prefix: str) -> None:
        with suppress(SQLAlchemyError, OSError):
            await self._store.record_use(prefix)


def _no_key() -> NotFound:
    return NotFound("there is no key with this prefix", code="key_not_found", param="prefix")
