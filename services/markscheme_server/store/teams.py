"""Teams and their keys. The one store that does not take a team: it says which there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from markscheme.vocabulary import Scope
from markscheme_server.store.batching import Batcher
from markscheme_server.store.database import NOBODY, Database
from markscheme_server.store.ids import as_utc, now
from markscheme_server.store.tables import api_keys, teams


class Taken(Exception):
    """There is one of this name already."""


class Erased(Taken):
    """It was the name of a team that was erased."""


class UnknownTeam(Exception):
    """There is no team of this name."""


@dataclass(frozen=True, slots=True)
class Team:
    """A team of the organisation."""

    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; never the key itself."""

    prefix: str
    team: str
    scopes: tuple[Scope, ...]
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_live(self, at: datetime) -> bool:
        """Whether it opens anything at that time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class TeamStore:
    """Teams by name, keys by prefix and by digest."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._by_digest = sa.select(api_keys).where(database.in_keys(api_keys.c.digest, "keys"))
        self._finding: Batcher[str, Key | None] = Batcher(self._find)
        self._looking: Batcher[None, bool] = Batcher(self._look)

    async def create(self, name: str) -> Team:
        """A new team. Raises :class:`Taken`, and :class:`Erased` where the name was another's."""
        team = Team(name, now())
        try:
            async with self._db.writing(NOBODY) as connection:
                await connection.execute(teams.insert().values(name=name, created_at=team.created_at))
        except IntegrityError as error:
            raise (Taken if name in {there.name for there in await self.all()} else Erased) from error
        return team

    async def all(self) -> list[Team]:
        """Every team that there is, by name."""
        async with self._db.reading(NOBODY) as connection:
            rows = await connection.execute(
                sa.select(teams).where(teams.c.erased_at.is_(None)).order_by(teams.c.name))
            return [Team(row.name, as_utc(row.created_at)) for row in rows]

    async def add_key(self, key: Key, digest: str) -> None:
        """Store a key. Raises :class:`UnknownTeam`, and :class:`Taken` where the prefix is another key's."""
        async with self._db.writing(NOBODY) as connection:
            known = await connection.execute(sa.select(teams.c.name).where(
                teams.c.name == key.team, teams.c.erased_at.is_(None)))
            if known.scalar() is None:
                raise UnknownTeam
            try:
                await connection.execute(api_keys.insert().values(
                    prefix=key.prefix, digest=digest, team=key.team, scopes=list(key.scopes), label=key.label,
                    created_at=key.created_at, expires_at=key.expires_at))
            except IntegrityError as error:
                raise Taken from error

    async def key(self, digest: str) -> Key | None:
        """The key of this digest, be it live or not."""
        return await self._finding.submit(digest)

    async def key_named(self, prefix: str) -> Key | None:
        """The key of this prefix."""
        async with self._db.reading(NOBODY) as connection:
            rows = await connection.execute(sa.select(api_keys).where(api_keys.c.prefix == prefix))
            row = rows.mappings().first()
        return _key(row) if row is not None else None

    async def keys(self, team: str | None = None) -> list[Key]:
        """Every key, or every key of a team, newest first."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.prefix)
        if team is not None:
            query = query.where(api_keys.c.team == team)
        async with self._db.reading(NOBODY) as connection:
            return [_key(row) for row in (await connection.execute(query)).mappings()]

    async def any_key(self) -> bool:
        """Whether a key was ever made."""
        return await self._looking.submit(None)

    async def revoke(self, prefix: str) -> Key | None:
        """End a key now; one that has ended before keeps its time. ``None``: there is no such key."""
        return await self._change(prefix, revoked_at=sa.func.coalesce(api_keys.c.revoked_at, now()))

    async def expire(self, prefix: str, at: datetime) -> Key | None:
        """Let a key end at a time, unless it ends before that anyway."""
        sooner = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > at)
        return await self._change(prefix, expires_at=sa.case((sooner, at), else_=api_keys.c.expires_at))

    async def used(self, prefix: str) -> None:
        """Note that a key was used just now."""
        await self._change(prefix, last_used_at=now())

    async def _change(self, prefix: str, **values: Any) -> Key | None:
        async with self._db.writing(NOBODY) as connection:
            rows = await connection.execute(
                sa.update(api_keys).where(api_keys.c.prefix == prefix).values(**values).returning(api_keys))
            row = rows.mappings().first()
        return _key(row) if row is not None else None

    async def _find(self, digests: Sequence[str]) -> list[Key | None]:
        async with self._db.reading(NOBODY) as connection:
            rows = (await connection.execute(self._by_digest, {"keys": self._db.keys(digests)})).mappings()
            found = {row["digest"]: _key(row) for row in rows}
        return [found.get(digest) for digest in digests]

    async def _look(self, asked: Sequence[None]) -> list[bool]:
        async with self._db.reading(NOBODY) as connection:
            there = (await connection.execute(sa.select(api_keys.c.prefix).limit(1))).scalar() is not None
        return [there] * len(asked)


def _key(row: Mapping[Any, Any]) -> Key:
    return Key(row["prefix"], row["team"], tuple(row["scopes"]), row["label"], as_utc(row["created_at"]),
               *(as_utc(row[name]) if row[name] else None for name in ("expires_at", "revoked_at", "last_used_at")))
