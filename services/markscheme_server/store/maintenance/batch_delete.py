"""Long work on whole tables in short transactions, beside a running service.

Each table is walked along one indexed column in windows of about ``WINDOW`` rows, one transaction a window: a killed
walk has done whole windows, and the next one goes on with the rest.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.engine.database import ALL_TEAMS, Database

WINDOW = 1000
LOCK_TIMEOUT_S, LOCK_TRIES = 0.5, 20
PAUSE_LEAST_S = 0.005
PASSING = ("55P03", "40P01", "23503")
"""PostgreSQL's states for: a lock was not to be had, two waited for each other, a row came to be referred to."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did: rows walked past in ``table``, and rows removed (or to be removed) by table."""

    table: str
    walked: int
    removed: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeleteStep:
    """A table, the column along which it is walked, which rows are walked past, and which of them go."""

    table: sa.Table
    along: sa.Column[Any]
    walked: sa.ColumnElement[bool]
    goes: sa.ColumnElement[bool]
    window: int | None = None
    """Rows in a window; default: ``WINDOW``."""
    takes: tuple[tuple[sa.Table, sa.Column[Any], sa.Column[Any]], ...] = ()
    """Tables whose rows go with these: (table, its column, the column of ours that it refers to)."""
    guarded: bool = False
    """Rows of other tables may come to refer to this one at any moment."""
    first: Callable[[AsyncConnection, sa.ColumnElement[bool]], Awaitable[dict[str, int]]] | None = (
        None
    )
    """What is done in a window before anything is removed; what it counts is told with what was removed."""
    then: Callable[[AsyncConnection, Sequence[sa.Row[Any]]], Awaitable[None]] | None = None
    """What is done with the rows of ours that were removed, in the transaction that removed them."""


class BatchDeleter:
    """Takes the walks in order, or with ``dry`` only counts."""

    def __init__(
        self, database: Database, walks: Sequence[DeleteStep], *, dry: bool = False
    ) -> None:
        self._db, self._walks, self._dry = database, walks, dry

    async def total(self) -> int:
        """The rows that :meth:`run` walks past."""
        async with self._db.reading(ALL_TEAMS) as connection:
            return sum(
                [
                    (
                        await connection.execute(
                            sa.select(sa.func.count()).select_from(walk.table).where(walk.walked)
                        )
                    ).scalar_one()
                    for walk in self._walks
                ]
            )

    async def run(self) -> AsyncIterator[Batch]:
        """DeleteStep all tables."""
        for walk in self._walks:
            after: Any = None
            while True:
                started = time.perf_counter()
                window, after = await self._window(walk, after)
                yield window
                if after is None:
                    break
                # As long as it took: a writer that waits for SQLite's one lock polls, and must find it free.
                await asyncio.sleep(
                    0 if self._dry else max(PAUSE_LEAST_S, time.perf_counter() - started)
                )

    async def _window(self, walk: DeleteStep, after: Any) -> tuple[Batch, Any]:
        """One transaction: the rows behind ``after``; and where the next window begins, ``None`` at the end."""
        behind = sa.true() if after is None else walk.along > after
        edge = (
            sa.select(walk.along)
            .where(walk.walked, behind)
            .order_by(walk.along)
            .offset((walk.window or WINDOW) - 1)
            .limit(1)
        )
        if self._dry:
            async with self._db.reading(ALL_TEAMS) as connection:
                return await self._pass(connection, walk, behind, edge)
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                async with self._db.writing(ALL_TEAMS) as connection:
                    if walk.guarded:
                        await self._guard(connection, walk.table)
                    return await self._pass(connection, walk, behind, edge)
            except DBAPIError as error:
                if not tries_left or getattr(error.orig, "sqlstate", None) not in PASSING:
                    raise
                await asyncio.sleep(LOCK_TIMEOUT_S)
        raise AssertionError("unreachable")

    async def _pass(
        self,
        connection: AsyncConnection,
        walk: DeleteStep,
        behind: sa.ColumnElement[bool],
        edge: sa.Select[Any],
    ) -> tuple[Batch, Any]:
        last = (await connection.execute(edge)).scalar()
        inside = sa.and_(walk.walked, behind, sa.true() if last is None else walk.along <= last)
        walked = (
            await connection.execute(
                sa.select(sa.func.count()).select_from(walk.table).where(inside)
            )
        ).scalar_one()
        removed = (
            await walk.first(connection, inside) if walk.first is not None and not self._dry else {}
        )
        doomed = sa.and_(inside, walk.goes)
        for table, column, ours in walk.takes:
            removed[table.name] = await self._remove(
                connection, table, column.in_(sa.select(ours).where(doomed))
            )
        removed[walk.table.name] = await self._remove(connection, walk.table, doomed, walk.then)
        return Batch(walk.table.name, walked, removed), last

    async def _remove(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        doomed: sa.ColumnElement[bool],
        then: Callable[[AsyncConnection, Sequence[sa.Row[Any]]], Awaitable[None]] | None = None,
    ) -> int:
        if self._dry:
            return int(
                (
                    await connection.execute(
                        sa.select(sa.func.count()).select_from(table).where(doomed)
                    )
                ).scalar_one()
            )
        if then is None:
            return (await connection.execute(sa.delete(table).where(doomed))).rowcount
        # The rows that this statement removed, and no others: two walkers may be at the same ones.
        rows = (await connection.execute(sa.delete(table).where(doomed).returning(*table.c))).all()
        await then(connection, rows)
        return len(rows)

    async def _guard(self, connection: AsyncConnection, table: sa.Table) -> None:
        """Let no writer into ``table`` until this transaction ends (SQLite: BEGIN IMMEDIATE has done that).

        The service stores a text and what refers to it in one transaction, but a text that is there already it
        only passes by: without this it could vanish between the two. The time limit is for those who would queue
        behind us while we wait, say, for a vacuum.
        """
        if connection.dialect.name == "postgresql":
            await connection.execute(
                sa.text(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
            )
            await connection.execute(
                sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")
            )


def unreferenced(
    by: sa.Column[Any], key: sa.Column[Any], *which: sa.ColumnElement[bool]
) -> sa.ColumnElement[bool]:
    """No row (of those ``which``) refers to ``key``."""
    return ~sa.exists().where(by == key, *which)
