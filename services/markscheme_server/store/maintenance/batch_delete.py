"""Delete rows in batches of about 1,000, one transaction each, while the service runs.

Each table is scanned in the order of one indexed column. An interrupted run has deleted whole
batches, and the next run deletes the rest.
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

BATCH_SIZE = 1000
LOCK_TIMEOUT_S, LOCK_ATTEMPTS = 0.5, 20
MIN_PAUSE_S = 0.005
RETRYABLE_STATES = ("55P03", "40P01", "23503")
"""PostgreSQL's states for: lock not available, deadlock, and a new reference to a row."""

Before = Callable[[AsyncConnection, sa.ColumnElement[bool]], Awaitable[dict[str, int]]]
After = Callable[[AsyncConnection, Sequence[sa.Row[Any]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did, or would do in a dry run.

    It scanned so many rows of ``table``, and deleted rows by table.
    """

    table: str
    scanned: int
    deleted: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeleteStep:
    """Which rows of a table to scan, in the order of a column, and which of these to delete."""

    table: sa.Table
    order_by: sa.Column[Any]
    scan: sa.ColumnElement[bool]
    delete_where: sa.ColumnElement[bool]
    batch_size: int | None = None
    """Rows per batch; default: `BATCH_SIZE`."""
    cascade: tuple[tuple[sa.Table, sa.Column[Any], sa.Column[Any]], ...] = ()
    """Tables with rows to delete along: (table, its column, our column that it refers to)."""
    lock_table: bool = False
    """Lock the table: rows of other tables may begin to refer to it at any moment."""
    before: Before | None = None
    """Runs before a batch's deletes, with the condition of its rows; returns counts to report."""
    after: After | None = None
    """Runs after a batch's deletes, in their transaction, with the deleted rows."""


class BatchDeleter:
    """Executes steps in order, or with ``dry`` only counts."""

    def __init__(
        self, database: Database, steps: Sequence[DeleteStep], *, dry: bool = False
    ) -> None:
        self._db, self._steps, self._dry = database, steps, dry

    async def total(self) -> int:
        """Count the rows that `run` scans."""
        async with self._db.reading(ALL_TEAMS) as connection:
            return sum([await _count(connection, step.table, step.scan) for step in self._steps])

    async def run(self) -> AsyncIterator[Batch]:
        """Execute all steps, and yield each batch once it is committed."""
        for step in self._steps:
            after_key: Any = None
            while True:
                started = time.perf_counter()
                batch, after_key = await self._run_batch(step, after_key)
                yield batch
                if after_key is None:
                    break
                # Pause as long as the batch took: a writer that polls for SQLite's one lock must
                # find it free.
                pause_s = max(MIN_PAUSE_S, time.perf_counter() - started)
                await asyncio.sleep(0 if self._dry else pause_s)

    async def _run_batch(self, step: DeleteStep, after_key: Any) -> tuple[Batch, Any]:
        """Process the rows behind ``after_key`` in one transaction.

        Returns the batch and its last key; ``None`` at the end of the table.
        """
        behind = sa.true() if after_key is None else step.order_by > after_key
        # The key of the batch's last row. Rows of an equal key are in the batch too.
        last_key = (
            sa.select(step.order_by)
            .where(step.scan, behind)
            .order_by(step.order_by)
            .offset((step.batch_size or BATCH_SIZE) - 1)
            .limit(1)
        )
        if self._dry:
            async with self._db.reading(ALL_TEAMS) as connection:
                return await self._process(connection, step, behind, last_key)
        for attempts_left in reversed(range(LOCK_ATTEMPTS)):
            try:
                async with self._db.writing(ALL_TEAMS) as connection:
                    if step.lock_table:
                        await self._lock(connection, step.table)
                    return await self._process(connection, step, behind, last_key)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if not attempts_left or state not in RETRYABLE_STATES:
                    raise
                await asyncio.sleep(LOCK_TIMEOUT_S)
        raise AssertionError("unreachable")

    async def _process(
        self,
        connection: AsyncConnection,
        step: DeleteStep,
        behind: sa.ColumnElement[bool],
        last_key: sa.Select[Any],
    ) -> tuple[Batch, Any]:
        last = (await connection.execute(last_key)).scalar()
        in_batch = sa.and_(step.scan, behind, sa.true() if last is None else step.order_by <= last)
        scanned = await _count(connection, step.table, in_batch)
        deleted: dict[str, int] = {}
        if step.before is not None and not self._dry:
            deleted |= await step.before(connection, in_batch)
        if not scanned:
            tables = (*(table for table, _, _ in step.cascade), step.table)
            return Batch(step.table.name, 0, deleted | {table.name: 0 for table in tables}), last
        condition = sa.and_(in_batch, step.delete_where)
        for table, column, ours in step.cascade:
            deleted[table.name] = await self._delete(
                connection, table, column.in_(sa.select(ours).where(condition))
            )
        deleted[step.table.name] = await self._delete(connection, step.table, condition, step.after)
        return Batch(step.table.name, scanned, deleted), last

    async def _delete(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        condition: sa.ColumnElement[bool],
        after: After | None = None,
    ) -> int:
        if self._dry:
            return await _count(connection, table, condition)
        if after is None:
            return (await connection.execute(sa.delete(table).where(condition))).rowcount
        # Pass on the rows that this statement deleted: another run may be at the same ones.
        statement = sa.delete(table).where(condition).returning(*table.c)
        rows = (await connection.execute(statement)).all()
        await after(connection, rows)
        return len(rows)

    async def _lock(self, connection: AsyncConnection, table: sa.Table) -> None:
        """Let no writer into ``table`` until this transaction ends (SQLite needs no lock).

        The service stores a text and its references in one transaction, but does not touch a text
        that exists already: it could be deleted between the two. The timeout spares those that
        would queue behind us while we wait, for example for a vacuum.
        """
        if connection.dialect.name == "postgresql":
            await connection.execute(
                sa.text(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
            )
            await connection.execute(
                sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")
            )


async def _count(
    connection: AsyncConnection, table: sa.Table, condition: sa.ColumnElement[bool]
) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(condition)
    return int((await connection.execute(query)).scalar_one())


def unreferenced(
    by: sa.Column[Any], key: sa.Column[Any], *which: sa.ColumnElement[bool]
) -> sa.ColumnElement[bool]:
    """Return the condition that no row (of those ``which``) refers to ``key``."""
    return ~sa.exists().where(by == key, *which)
