"""Rubrics, the prompts they are for, and the memo of inductions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import RubricOrigin
from markscheme_server.domain.fingerprint import ChatMessage, content_hash, prompt_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.store.batching import Batcher
from markscheme_server.store.claims import Claim, ClaimLost, ClaimStore
from markscheme_server.store.database import Database
from markscheme_server.store.ids import as_utc, new_id, now
from markscheme_server.store.tables import inductions, prompts, rubrics

_SELECT = sa.select(rubrics, prompts.c.messages).join(prompts, prompts.c.key == rubrics.c.prompt_key)


def _rubric(row: Mapping[str, Any]) -> Rubric:
    return Rubric(
        id=row["id"], team=row["team"], prompt_key=row["prompt_key"], prompt=tuple(row["messages"]),
        version=row["version"], parent_id=row["parent_id"], content_hash=row["content_hash"],
        criteria=tuple(Criterion(**c) for c in row["criteria"]), origin=row["origin"], tags=tuple(row["tags"]),
        provenance=row["provenance"], created_at=as_utc(row["created_at"]),
    )


class RubricStore:
    """Rubrics by id, by prompt and by induction. Every read names the team."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        r = rubrics.c
        self._by_id = _SELECT.where(database.in_keys(r.id, "keys"))
        newest = (sa.select(r.team, r.prompt_key, sa.func.max(r.version).label("version"))
                  .where(database.in_keys(r.team, "teams"), database.in_keys(r.prompt_key, "keys"))
                  .group_by(r.team, r.prompt_key).subquery())
        self._newest = _SELECT.join(newest, sa.and_(
            r.team == newest.c.team, r.prompt_key == newest.c.prompt_key, r.version == newest.c.version))
        self._by_induction = (_SELECT.add_columns(inductions.c.key.label("induction"))
                              .join(inductions, inductions.c.rubric_id == r.id)
                              .where(database.in_keys(inductions.c.key, "keys")))
        self._finding: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find)
        self._finding_newest: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find_newest)
        self._finding_induced: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find_induced)

    async def find(self, team: str, rubric_id: str) -> Rubric | None:
        """The team's rubric of this id."""
        return await self._finding.submit((team, rubric_id))

    async def find_newest(self, team: str, key: str) -> Rubric | None:
        """The newest version for a prompt."""
        return await self._finding_newest.submit((team, key))

    async def find_induced(self, team: str, induction: str) -> Rubric | None:
        """The rubric that this very induction made before."""
        return await self._finding_induced.submit((team, induction))

    async def _find(self, wanted: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        by_id = {(row["team"], row["id"]): _rubric(row) for row in await self._rows(self._by_id, wanted)}
        return [by_id.get(pair) for pair in wanted]

    async def _find_newest(self, wanted: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        rows = await self._rows(self._newest, wanted, teams=self._db.keys(team for team, _ in wanted))
        by_prompt = {(row["team"], row["prompt_key"]): _rubric(row) for row in rows}
        return [by_prompt.get(pair) for pair in wanted]

    async def _find_induced(self, wanted: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        rows = await self._rows(self._by_induction, wanted)
        by_induction = {(row["team"], row["induction"]): _rubric(row) for row in rows}
        return [by_induction.get(pair) for pair in wanted]

    async def _rows(self, query: sa.Select[Any], wanted: Sequence[tuple[str, str]],
                    **more: Any) -> list[dict[str, Any]]:
        """The rows whose key is the second of a wanted pair; the caller picks those of the right team."""
        async with self._db.reading() as connection:
            found = await connection.execute(query, {"keys": self._db.keys(key for _, key in wanted), **more})
            return [dict(row) for row in found.mappings()]

    async def page(self, team: str, *, key: str | None, origin: str | None, after: str | None,
                   limit: int) -> tuple[list[Rubric], bool]:
        """Newest first, from behind the rubric ``after``; and whether there are more."""
        query = _SELECT.where(rubrics.c.team == team)
        if key is not None:
            query = query.where(rubrics.c.prompt_key == key)
        if origin is not None:
            query = query.where(rubrics.c.origin == origin)
        if after is not None:
            edge = sa.select(rubrics.c.created_at, rubrics.c.id).where(
                rubrics.c.team == team, rubrics.c.id == after).subquery()
            query = query.join(edge, sa.or_(
                rubrics.c.created_at < edge.c.created_at,
                sa.and_(rubrics.c.created_at == edge.c.created_at, rubrics.c.id < edge.c.id)))
        found = await self._select(query.order_by(rubrics.c.created_at.desc(), rubrics.c.id.desc()).limit(limit + 1))
        return found[:limit], len(found) > limit

    async def save(self, *, team: str, prompt: Sequence[ChatMessage], criteria: Sequence[Criterion],
                   origin: RubricOrigin, tags: Sequence[str] = (), provenance: Mapping[str, Any],
                   induction: str | None = None, claim: Claim | None = None) -> Rubric:
        """Store a rubric as the prompt's next version and return it as stored.

        When the newest version has the same content it is returned instead: the same marks need no new version.
        With ``induction`` the memo is written in the same transaction; if another writer was first, its rubric
        is the answer.
        """
        key, hashed = prompt_key(prompt), content_hash(criteria)
        async with self._db.writing() as connection:
            await self._lock_prompt(connection, key)
            if claim is not None and not await self._claims.release(connection, dict([claim])):
                raise ClaimLost
            if induction is not None:
                memo = (await connection.execute(
                    sa.select(inductions.c.rubric_id).where(inductions.c.key == induction))).scalar()
                if memo is not None:
                    return (await self._fetch(connection, _SELECT.where(rubrics.c.id == memo)))[0]
            await self._db.insert_new(connection, prompts, [
                {"key": key, "messages": list(prompt), "created_at": now()}])
            newest = await self._fetch(connection, _SELECT.where(
                rubrics.c.team == team, rubrics.c.prompt_key == key).order_by(rubrics.c.version.desc()).limit(1))
            parent = newest[0] if newest else None
            if parent is None or parent.content_hash != hashed:
                saved = Rubric(
                    id=new_id("rub"), team=team, prompt_key=key, prompt=tuple(prompt),
                    version=parent.version + 1 if parent else 1, parent_id=parent.id if parent else None,
                    content_hash=hashed, criteria=tuple(criteria), origin=origin, tags=tuple(tags),
                    provenance=provenance, created_at=now())
                await connection.execute(rubrics.insert().values(
                    id=saved.id, team=team, prompt_key=key, version=saved.version, parent_id=saved.parent_id,
                    content_hash=hashed, criteria=[_plain(c) for c in criteria], origin=origin, tags=list(tags),
                    provenance=dict(provenance), created_at=saved.created_at))
            else:
                saved = parent
            if induction is not None:
                await connection.execute(inductions.insert().values(
                    key=induction, rubric_id=saved.id, created_at=now()))
        return saved

    @staticmethod
    async def _lock_prompt(connection: AsyncConnection, key: str) -> None:
        """Versions of one prompt are numbered one writer at a time; SQLite's BEGIN IMMEDIATE already does it."""
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(:k)"),
                                     {"k": int(key[:15], 16)})

    async def _select(self, query: sa.Select[Any]) -> list[Rubric]:
        async with self._db.reading() as connection:
            return await self._fetch(connection, query)

    @staticmethod
    async def _fetch(connection: AsyncConnection, query: sa.Select[Any]) -> list[Rubric]:
        return [_rubric(dict(row)) for row in (await connection.execute(query)).mappings()]


def _plain(criterion: Criterion) -> dict[str, Any]:
    return asdict(criterion) | {"check": dict(criterion.check) if criterion.check else None}
