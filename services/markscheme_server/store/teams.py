"""Teams and their API keys. This repository has no team scope: it defines the teams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import ReuseScope, Scope
from markscheme_server.domain.caller import DEFAULT_TEAM
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import NO_TEAM, Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import api_keys, teams


class NameTaken(Exception):
    """A team or key of this name exists."""


class NameErased(NameTaken):
    """The name belonged to a team that was erased."""


class UnknownTeam(Exception):
    """No team has this name."""


@dataclass(frozen=True, slots=True)
class Team:
    """A team of the organisation.

    ``rpm``: requests per minute, where the team has a limit of its own; ``reuse_scope``: whose
    rubrics its groups get, where that is set.
    """

    name: str
    created_at: datetime
    rpm: int | None = None
    reuse_scope: ReuseScope | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """The stored record of an API key; never the key itself."""

    prefix: str
    team: str
    scopes: tuple[Scope, ...]
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_live(self, at: datetime) -> bool:
        """Return whether the key is valid at that time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class AuthenticatedKey:
    """The record of a presented key, and the settings of its team; see `Team`."""

    key: Key
    rpm: int | None
    reuse_scope: ReuseScope | None


class TeamStore:
    """Teams by name, keys by prefix and by digest. Each change is recorded in the audit trail."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._by_digest = (
            sa.select(api_keys, teams.c.rpm, teams.c.reuse_scope)
            .join(teams, teams.c.name == api_keys.c.team)
            .where(database.in_keys(api_keys.c.digest, "keys"))
        )
        self._finding: Batcher[str, AuthenticatedKey | None] = Batcher(database, self._find)
        self._reading_defaults: Batcher[None, tuple[bool, int | None, ReuseScope | None]] = Batcher(
            database, self._read_defaults
        )

    async def create(self, name: str, actor: Actor) -> Team:
        """Create a team. Raises `NameTaken`; `NameErased` where the name was an erased team's."""
        team = Team(name, now())
        try:
            async with self._db.writing(team_scope(actor.team)) as connection:
                await connection.execute(
                    teams.insert().values(name=name, created_at=team.created_at)
                )
                await record(connection, actor, "team.created", f"team:{name}")
        except IntegrityError as error:
            # `all` leaves erased teams out, but their rows keep the name taken.
            exists = name in {each.name for each in await self.all()}
            raise (NameTaken if exists else NameErased) from error
        return team

    async def limit(self, name: str, rpm: int | None, actor: Actor) -> Team | None:
        """Set or remove a team's own limit. Returns ``None`` if there is no such team."""
        return await self.change(name, {"rpm": rpm}, actor)

    async def change(self, name: str, values: Mapping[str, Any], actor: Actor) -> Team | None:
        """Set ``rpm``, ``reuse_scope`` or both; return ``None`` if there is no such team."""
        query = (
            sa.select(teams)
            .where(teams.c.name == name, teams.c.erased_at.is_(None))
            .with_for_update()
        )
        async with self._db.writing(team_scope(actor.team)) as connection:
            # Locked, so that the audit entry names the values that were replaced.
            before = (await connection.execute(query)).mappings().one_or_none()
            if before is None:
                return None
            changed = {column: value for column, value in values.items() if before[column] != value}
            if changed:
                await connection.execute(
                    sa.update(teams).where(teams.c.name == name).values(**changed)
                )
                await record(
                    connection,
                    actor,
                    "team.changed",
                    f"team:{name}",
                    changed | {f"{column}_before": before[column] for column in changed},
                )
        return _team({**before, **changed})

    async def all(self) -> list[Team]:
        """Return all teams, by name."""
        async with self._db.reading(NO_TEAM) as connection:
            rows = await connection.execute(
                sa.select(teams).where(teams.c.erased_at.is_(None)).order_by(teams.c.name)
            )
            return [_team(row) for row in rows.mappings()]

    async def is_known(self, name: str) -> bool:
        """Return whether there is, or was, a team of this name."""
        async with self._db.reading(NO_TEAM) as connection:
            found = await connection.execute(sa.select(teams.c.name).where(teams.c.name == name))
            return found.scalar() is not None

    async def add_key(self, key: Key, digest: str, actor: Actor) -> None:
        """Store a key. Raises `UnknownTeam`; `NameTaken` where another key has the prefix."""
        async with self._db.writing(team_scope(actor.team)) as connection:
            known = await connection.execute(
                sa.select(teams.c.name).where(teams.c.name == key.team, teams.c.erased_at.is_(None))
            )
            if known.scalar() is None:
                raise UnknownTeam
            try:
                await connection.execute(
                    api_keys.insert().values(
                        prefix=key.prefix,
                        digest=digest,
                        team=key.team,
                        scopes=list(key.scopes),
                        label=key.label,
                        created_at=key.created_at,
                        expires_at=key.expires_at,
                    )
                )
            except IntegrityError as error:
                raise NameTaken from error
            await record(
                connection,
                actor,
                "key.created",
                f"key:{key.prefix}",
                {
                    "team": key.team,
                    "scopes": list(key.scopes),
                    "expires_at": _isoformat(key.expires_at),
                },
            )

    async def key_by_digest(self, digest: str) -> AuthenticatedKey | None:
        """Return the key with this digest, whether it is valid or not."""
        return await self._finding.submit(digest)

    async def keys_with_prefix(self, text: str) -> list[Key]:
        """Return the keys whose prefix begins with ``text``; none where it is empty."""
        if not text:
            return []
        query = sa.select(api_keys).where(api_keys.c.prefix.startswith(text, autoescape=True))
        async with self._db.reading(NO_TEAM) as connection:
            # SQLite's LIKE ignores case.
            return [
                _key(row)
                for row in (await connection.execute(query)).mappings()
                if row["prefix"].startswith(text)
            ]

    async def key_by_prefix(self, prefix: str) -> Key | None:
        """Return the key with this prefix."""
        async with self._db.reading(NO_TEAM) as connection:
            rows = await connection.execute(sa.select(api_keys).where(api_keys.c.prefix == prefix))
            row = rows.mappings().first()
        return _key(row) if row is not None else None

    async def keys(self, team: str | None = None) -> list[Key]:
        """Return all keys, or those of a team, newest first."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.prefix)
        if team is not None:
            query = query.where(api_keys.c.team == team)
        async with self._db.reading(NO_TEAM) as connection:
            return [_key(row) for row in (await connection.execute(query)).mappings()]

    async def any_key(self) -> bool:
        """Return whether a key was ever created."""
        return (await self.read_defaults())[0]

    async def read_defaults(self) -> tuple[bool, int | None, ReuseScope | None]:
        """Return whether a key was ever created, and the operator's ``rpm`` and reuse scope."""
        return await self._reading_defaults.submit(None)

    async def revoke(self, prefix: str, actor: Actor) -> Key | None:
        """Revoke a key now, unless it was revoked before; ``None`` if there is no such key."""
        async with self._db.writing(team_scope(actor.team)) as connection:
            key = await _change(connection, _NOT_REVOKED, prefix, revoked_at=now())
            if key is not None:
                await record(connection, actor, "key.revoked", f"key:{prefix}", {"team": key.team})
        return key or await self.key_by_prefix(prefix)

    async def replace(self, prefix: str, *, by: str, at: datetime, actor: Actor) -> bool:
        """Let a key expire at a time, or earlier if it does: the key ``by`` replaces it.

        Returns false if it was revoked, or if there is no such key.
        """
        later = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > at)
        async with self._db.writing(team_scope(actor.team)) as connection:
            key = await _change(
                connection,
                _NOT_REVOKED,
                prefix,
                expires_at=sa.case((later, at), else_=api_keys.c.expires_at),
            )
            if key is not None:
                await record(
                    connection,
                    actor,
                    "key.rotated",
                    f"key:{prefix}",
                    {"team": key.team, "to": by, "expires_at": _isoformat(key.expires_at)},
                )
        return key is not None

    async def record_use(self, prefix: str) -> None:
        """Record that a key was used just now."""
        async with self._db.writing(NO_TEAM) as connection:
            await _change(connection, sa.true(), prefix, last_used_at=now())

    async def _find(self, digests: Sequence[str]) -> list[AuthenticatedKey | None]:
        async with self._db.reading(NO_TEAM) as connection:
            rows = (
                await connection.execute(self._by_digest, {"keys": self._db.keys(digests)})
            ).mappings()
            found = {
                row["digest"]: AuthenticatedKey(_key(row), row["rpm"], row["reuse_scope"])
                for row in rows
            }
        return [found.get(digest) for digest in digests]

    async def _read_defaults(
        self, batch: Sequence[None]
    ) -> list[tuple[bool, int | None, ReuseScope | None]]:
        ((any_key, rpm, reuse_scope),) = await self._db.read(NO_TEAM, _DEFAULTS, {})
        return [(bool(any_key), rpm, reuse_scope)] * len(batch)


_NOT_REVOKED = api_keys.c.revoked_at.is_(None)
_DEFAULTS = sa.select(
    sa.exists(sa.select(api_keys.c.prefix)),
    *(
        sa.select(column).where(teams.c.name == DEFAULT_TEAM).scalar_subquery()
        for column in (teams.c.rpm, teams.c.reuse_scope)
    ),
)


async def _change(
    connection: AsyncConnection, which: sa.ColumnElement[bool], prefix: str, **values: Any
) -> Key | None:
    rows = await connection.execute(
        sa.update(api_keys)
        .where(api_keys.c.prefix == prefix, which)
        .values(**values)
        .returning(api_keys)
    )
    row = rows.mappings().first()
    return _key(row) if row is not None else None


def _isoformat(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None


def _team(row: Mapping[Any, Any]) -> Team:
    return Team(row["name"], as_utc(row["created_at"]), row["rpm"], row["reuse_scope"])


def _key(row: Mapping[Any, Any]) -> Key:
    return Key(
        row["prefix"],
        row["team"],
        tuple(row["scopes"]),
        row["label"],
        as_utc(row["created_at"]),
        *(
            as_utc(row[name]) if row[name] else None
            for name in ("expires_at", "revoked_at", "last_used_at")
        ),
    )
