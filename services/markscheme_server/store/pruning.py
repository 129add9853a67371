"""Removing what old runs left, in short transactions beside a running service.

What ages: assignments with their rollouts, verdicts, judge calls, answers under idempotency keys, expired claims; and
texts and prompts once nothing refers to them. What stays whatever its age: rubrics with their lineage, inductions and
teacher responses, and what those refer to. (A rubric's provenance names students' texts by hash; a hash keeps no text.)

Each table is walked along one indexed column in windows of about ``WINDOW`` rows, one transaction a window: a killed
run has removed whole windows, and the next one goes on with the rest.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.database import EVERYONE, Database
from markscheme_server.store.tables import (
    assignments,
    claims,
    idempotency_keys,
    judge_calls,
    prompts,
    rollouts,
    rubrics,
    teacher_responses,
    texts,
    verdicts,
)

WINDOW = 1000
ASSIGNMENTS_A_WINDOW = 32
"""A group has up to 1,024 rollouts, and they go with it."""
LOCK_TIMEOUT_S, LOCK_TRIES = 0.5, 20
PAUSE_LEAST_S = 0.005


@dataclass(frozen=True, slots=True)
class Window:
    """What one transaction did: rows walked past in ``table``, and rows removed (or to be removed) by table."""

    table: str
    walked: int
    removed: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Walk:
    """A table, the column along which it is walked, which rows are walked past, and which of them go."""

    table: sa.Table
    along: sa.Column[Any]
    walked: sa.ColumnElement[bool]
    goes: sa.ColumnElement[bool]
    window: int = WINDOW
    takes: tuple[tuple[sa.Table, sa.Column[Any], sa.Column[Any]], ...] = ()
    """Tables whose rows go with these: (table, its column, the column of ours that it refers to)."""
    guarded: bool = False
    """Rows of other tables may come to refer to this one at any moment."""


class Pruner:
    """Removes, or with ``dry`` counts, what is older than ``before``."""

    def __init__(self, database: Database, before: datetime, *, dry: bool) -> None:
        self._db, self._dry = database, dry
        self._walks = _walks(before, self._db.clock, dry=dry)

    async def total(self) -> int:
        """The rows that :meth:`run` walks past."""
        async with self._db.reading(EVERYONE) as connection:
            return sum([(await connection.execute(
                sa.select(sa.func.count()).select_from(walk.table).where(walk.walked))).scalar_one()
                for walk in self._walks])

    async def run(self) -> AsyncIterator[Window]:
        """Walk all tables, in the order in which rows cease to be referred to."""
        for walk in self._walks:
            after: Any = None
            while True:
                started = time.perf_counter()
                window, after = await self._window(walk, after)
                yield window
                if after is None:
                    break
                # As long as it took: a writer that waits for SQLite's one lock polls, and must find it free.
                await asyncio.sleep(0 if self._dry else max(PAUSE_LEAST_S, time.perf_counter() - started))

    async def _window(self, walk: _Walk, after: Any) -> tuple[Window, Any]:
        """One transaction: the rows behind ``after``; and where the next window begins, ``None`` at the end."""
        behind = sa.true() if after is None else walk.along > after
        edge = (sa.select(walk.along).where(walk.walked, behind).order_by(walk.along)
                .offset(walk.window - 1).limit(1))
        if self._dry:
            async with self._db.reading(EVERYONE) as connection:
                return await self._pass(connection, walk, behind, edge)
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                async with self._db.writing(EVERYONE) as connection:
                    if walk.guarded:
                        await self._guard(connection, walk.table)
                    return await self._pass(connection, walk, behind, edge)
            except DBAPIError as error:
                if not tries_left or getattr(error.orig, "sqlstate", None) not in ("55P03", "40P01"):
                    raise
                await asyncio.sleep(LOCK_TIMEOUT_S)
        raise AssertionError("unreachable")

    async def _pass(self, connection: AsyncConnection, walk: _Walk, behind: sa.ColumnElement[bool],
                    edge: sa.Select[Any]) -> tuple[Window, Any]:
        last = (await connection.execute(edge)).scalar()
        inside = sa.and_(walk.walked, behind, sa.true() if last is None else walk.along <= last)
        walked = (await connection.execute(
            sa.select(sa.func.count()).select_from(walk.table).where(inside))).scalar_one()
        doomed = sa.and_(inside, walk.goes)
        removed = {}
        for table, column, ours in walk.takes:
            removed[table.name] = await self._remove(connection, table, column.in_(sa.select(ours).where(doomed)))
        removed[walk.table.name] = await self._remove(connection, walk.table, doomed)
        return Window(walk.table.name, walked, removed), last

    async def _remove(self, connection: AsyncConnection, table: sa.Table, doomed: sa.ColumnElement[bool]) -> int:
        if self._dry:
            return int((await connection.execute(
                sa.select(sa.func.count()).select_from(table).where(doomed))).scalar_one())
        return (await connection.execute(sa.delete(table).where(doomed))).rowcount

    async def _guard(self, connection: AsyncConnection, table: sa.Table) -> None:
        """Let no writer into ``table`` until this transaction ends (SQLite: BEGIN IMMEDIATE has done that).

        The service stores a text and what refers to it in one transaction, but a text that is there already it
        only passes by: without this it could vanish between the two. The time limit is for those who would queue
        behind us while we wait, say, for a vacuum.
        """
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}"))
            await connection.execute(sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))

    async def give_back(self) -> None:
        """Shrink a SQLite file to what it holds. It is written anew: that takes its size in free disk, and writers
        wait. PostgreSQL needs none of it."""
        async with self._db.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("VACUUM")
            await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _walks(before: datetime, clock: sa.ColumnElement[float], *, dry: bool) -> Sequence[_Walk]:
    def aged(table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.created_at < before

    def unreferenced(by: sa.Column[Any], key: sa.Column[Any],
                     staying: sa.ColumnElement[bool] | None = None) -> sa.ColumnElement[bool]:
        """No row refers to ``key``; a dry run leaves out those that would have gone by then."""
        refers = by == key
        return ~sa.exists().where(sa.and_(refers, staying) if dry and staying is not None else refers)

    key = idempotency_keys.c
    recent_rollout = sa.exists().where(assignments.c.id == rollouts.c.assignment_id, ~aged(assignments))
    return (
        _Walk(assignments, assignments.c.created_at, aged(assignments), sa.true(), ASSIGNMENTS_A_WINDOW,
              takes=((rollouts, rollouts.c.assignment_id, assignments.c.id),)),
        _Walk(verdicts, verdicts.c.created_at, aged(verdicts), sa.true()),
        _Walk(judge_calls, judge_calls.c.created_at, aged(judge_calls),
              unreferenced(verdicts.c.call_id, judge_calls.c.id, ~aged(verdicts))),
        _Walk(idempotency_keys, key.created_at, aged(idempotency_keys),
              sa.or_(key.status.is_not(None), key.expires_at < clock)),
        _Walk(claims, claims.c.key, claims.c.expires_at < before.timestamp(), sa.true()),
        _Walk(texts, texts.c.key, sa.true(), sa.and_(
            unreferenced(rollouts.c.text_key, texts.c.key, recent_rollout),
            unreferenced(teacher_responses.c.text_key, texts.c.key), aged(texts)), guarded=True),
        _Walk(prompts, prompts.c.key, sa.true(), sa.and_(
            unreferenced(assignments.c.prompt_key, prompts.c.key, ~aged(assignments)),
            unreferenced(rubrics.c.prompt_key, prompts.c.key),
            unreferenced(teacher_responses.c.prompt_key, prompts.c.key), aged(prompts)), guarded=True),
    )
