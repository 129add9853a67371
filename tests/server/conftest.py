"""Both databases: SQLite in a file, and a real PostgreSQL with an empty database for each test."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from fakes.clock import Clock
from fakes.service import running
from fakes.stores import PostgresServer, RedisServer
from markscheme_server.config import Settings
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store
from server.deployment import PRICES, Deployment
from server.organisation import OPERATOR, PEPPER, Keys, Member, Team


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process; no test kills it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_postgres(postgres: PostgresServer) -> Callable[[], str]:
    """Return a function that creates a PostgreSQL database without rows and returns its URL.

    The owner is an ordinary role, so that row-level security applies. One database is migrated and
    the others are copies of it, which is quicker.
    """
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
    """Create an empty database of each kind; return its URL as an operator writes it."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'm.db')}"
    return str(request.getfixturevalue("new_postgres")())


@pytest.fixture
def organisation(database_url: str) -> Iterator[Keys]:
    """Two teams, red and blue, without a key."""
    made = Keys(database_url)
    for name in ("red", "blue"):
        made.team(name)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """By which what the services of `start` cache expires."""
    return Clock()


@pytest.fixture
def start(database_url: str, clock: Clock) -> Iterator[Callable[..., str]]:
    """Start services on the database; each call is one more."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running(
                Settings(
                    _env_file=None,
                    database_url=database_url,
                    **({"judge": "builtin", "key_pepper": PEPPER} | settings),
                ),
                clock=clock,
            )
        )


@pytest.fixture
def member(organisation: Keys, start: Callable[..., str]) -> Team:
    """Create three teams (red, blue and green) at one service, each with a key."""
    organisation.team("green")
    made = {
        name: organisation.key(name, "read", "score", "induce") for name in ("red", "blue", "green")
    }
    url = start()
    return lambda name: Member(url, made[name])


@pytest.fixture
def deployment(
    database_url: str, start: Callable[..., str], model_settings: dict[str, Any]
) -> Iterator[Deployment]:
    """Services whose judge is the scripted one, with prices; there is no team yet."""
    keys = Keys(database_url)
    yield Deployment(
        keys,
        lambda **settings: start(**({"api_key": OPERATOR} | model_settings | PRICES | settings)),
    )
    keys.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """Create a store with one team, red."""
    made = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    await made.teams.create("red", Actor())
    yield made
    await made.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One to kill."""
    server = RedisServer(tmp_path)
    yield server
    server.thaw()
    server.kill()
