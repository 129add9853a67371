"""The engine: SQLite and PostgreSQL behind the same few lines, and the migrations that build the tables.

SQLite runs in WAL mode; a writing transaction takes its lock at BEGIN, so that two writers queue on the busy
timeout instead of failing at the first write. Parameters are hidden from errors: they hold users' text.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT_S = 5
COMMAND_TIMEOUT_S = 30
BUSY_TIMEOUT_MS = 30_000
MIGRATION_LOCK = 5_270_411
"""The advisory lock that lets one migrator through at a time (PostgreSQL)."""


def create_engine(url: str) -> AsyncEngine:
    """An engine for ``url``; the folder of a SQLite file is made when it is missing."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(parsed, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        parsed, hide_parameters=True, pool_pre_ping=True, pool_size=10, max_overflow=10,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S},
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


class Database:
    """Transactions on one engine: ``reading`` never writes, ``writing`` commits at its end or rolls back."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            await connection.execution_options(writing=True)
            async with connection.begin():
                yield connection

    async def insert_new(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows; a row whose key is taken is left as it is."""
        if not rows:
            return
        build = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        await connection.execute(build(table).on_conflict_do_nothing(), list(rows))

    async def ping(self) -> None:
        """Raise unless the database answers."""
        async with self.reading() as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def migrate(self) -> None:
        """Bring the tables to the newest revision; a second migrator waits and then finds nothing to do."""
        async with self.engine.connect() as connection:
            await connection.execution_options(writing=True)
            async with connection.begin():
                await connection.run_sync(_upgrade)

    async def close(self) -> None:
        await self.engine.dispose()


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Alembic's settings for the revisions beside this module, bound to ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    command.upgrade(alembic_config(connection), "head")
