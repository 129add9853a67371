"""Both databases, without rows for each test: SQLite in a file, and a real PostgreSQL."""

import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import clean_environment
from fakes.clock import Clock
from fakes.service import running
from fakes.stores import PostgresServer, RedisServer
from markscheme_server.config import Settings
from markscheme_server.store.audit import Actor
from markscheme_server.store.store import Store
from server.databases import MigratedDatabases
from server.deployment import PRICES, Deployment
from server.organisation import OPERATOR, PEPPER, Keys, Member, Team


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process; no test kills it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_postgres(postgres: PostgresServer) -> Iterator[MigratedDatabases]:
    """Return a function that creates a PostgreSQL database without rows and returns its URL."""
    databases = MigratedDatabases(postgres)
    yield databases
    databases.close()


def make_database(
    request: pytest.FixtureRequest, folder: Path, migrated_sqlite: Path
) -> Iterator[str]:
    """Create a database of the requested kind without rows; yield its URL; take it back."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(migrated_sqlite, folder / 'm.db')}"
        return
    databases: MigratedDatabases = request.getfixturevalue("new_postgres")
    url = databases()
    yield url
    databases.give_back(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, migrated_sqlite: Path
) -> Iterator[str]:
    """Create a database of each kind without rows; return its URL as an operator writes it."""
    yield from make_database(request, tmp_path, migrated_sqlite)


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


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[str]:
    """Create a database of each kind for the tests of a module; return its URL."""
    yield from make_database(request, tmp_path_factory.mktemp("shared"), migrated_sqlite)


@pytest.fixture(scope="module")
def shared_keys(shared_database_url: str) -> Iterator[Keys]:
    """Return what makes teams and keys in the module's database."""
    keys = Keys(shared_database_url)
    yield keys
    keys.close()


@pytest.fixture(scope="module")
def shared_start(shared_database_url: str) -> Iterator[Callable[..., str]]:
    """Start services on the module's database, which run until the module's tests have ended."""
    with ExitStack() as stack:

        def start(**more: Any) -> str:
            with pytest.MonkeyPatch.context() as patch:
                clean_environment(patch)
                settings = Settings(
                    _env_file=None,
                    database_url=shared_database_url,
                    **({"judge": "builtin", "key_pepper": PEPPER} | more),
                )
            return stack.enter_context(running(settings))

        yield start


@pytest.fixture(scope="module")
def shared_url(shared_start: Callable[..., str]) -> str:
    """Start the service of the module."""
    return shared_start()


_numbers = itertools.count()


@pytest.fixture
def fresh_member(shared_keys: Keys, shared_url: str) -> Team:
    """Return what makes teams of this test's own at the module's service, each with a key."""
    number, made = next(_numbers), dict[str, Member]()

    def member(name: str) -> Member:
        if name not in made:
            team = f"{name}-{number}"
            shared_keys.team(team)
            made[name] = Member(shared_url, shared_keys.key(team, "read", "score", "induce"), team)
        return made[name]

    return member


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
