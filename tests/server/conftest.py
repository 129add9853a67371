"""Both databases: SQLite in a file, and a real PostgreSQL with an empty database for each test."""

import asyncio
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from fakes.stores import PostgresServer
from markscheme_server.config import Settings
from markscheme_server.store.maintenance.migrate import prepare


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process; no test kills it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_postgres(postgres: PostgresServer) -> Callable[[], str]:
    """Makes a PostgreSQL database without a row and returns its URL. Its owner is an ordinary role, so that row-level
    security holds. Migrated once and copied from then on, which is quicker."""
    numbers = itertools.count()

    async def execute(*statements: str) -> None:
        connection = await asyncpg.connect(postgres.url())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def url(name: str) -> str:
        chosen = sa.make_url(postgres.url(name)).set(username="markscheme")
        return chosen.render_as_string(hide_password=False)

    def make() -> str:
        name = f"test_{next(numbers)}"
        asyncio.run(execute(f"CREATE DATABASE {name} TEMPLATE migrated OWNER markscheme"))
        return url(name)

    asyncio.run(
        execute(
            "CREATE ROLE markscheme LOGIN CREATEROLE", "CREATE DATABASE migrated OWNER markscheme"
        )
    )
    asyncio.run(prepare(Settings(_env_file=None, database_url=url("migrated")).sqlalchemy_url))
    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path, migrated_sqlite: Path) -> str:
    """A database of each kind without a row, as an operator writes its URL."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'm.db')}"
    return str(request.getfixturevalue("new_postgres")())
