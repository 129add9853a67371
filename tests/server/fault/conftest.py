"""What the fault tests stand on: real servers, real processes, a judge that fails to order."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.fast_judge import FastJudge
from fakes.processes import ServiceProcess
from fakes.stores import PostgresServer
from fakes.tcp_proxy import TcpProxy
from markscheme_server.store.maintenance.migrate import prepare

Start = Callable[..., ServiceProcess]
_names = itertools.count()


@pytest.fixture
def judge() -> Iterator[FastJudge]:
    """Replace the scripted judge of the other tests."""
    made = FastJudge()
    yield made
    made.close()


@pytest.fixture
def empty_database(postgres: PostgresServer) -> str:
    """Create a database without tables and return its URL."""
    return postgres.create(f"test{next(_names)}")


@pytest.fixture(scope="session")
def migrated_database(postgres: PostgresServer) -> str:
    """Create a database without rows and return its name: others are copied from it."""
    url = postgres.create("migrated_by_postgres")
    asyncio.run(prepare(url.replace("postgresql://", "postgresql+asyncpg://")))
    return "migrated_by_postgres"


@pytest.fixture
def database(postgres: PostgresServer, migrated_database: str) -> str:
    """Create a database without rows and return its URL."""
    return postgres.create(f"test{next(_names)}", template=migrated_database)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One to kill."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def proxied() -> Iterator[Callable[[int], TcpProxy]]:
    """Proxies to loopback ports."""
    made: list[TcpProxy] = []

    def to(port: int) -> TcpProxy:
        made.append(TcpProxy(port))
        return made[-1]

    yield to
    for proxy in made:
        proxy.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start service processes; wait until each is ready unless ``ready`` says otherwise.

    None outlives the test.
    """
    made: list[ServiceProcess] = []

    def one(
        *, ready: bool = True, arguments: tuple[str, ...] = (), **settings: Any
    ) -> ServiceProcess:
        made.append(ServiceProcess(tmp_path / "service", settings, arguments=arguments))
        return made[-1].wait_ready() if ready else made[-1]

    yield one
    for process in made:
        process.kill()
