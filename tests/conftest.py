"""Fixtures for every level: a clean environment, a scripted judge, a running service."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before anything imports torch
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import asyncio
import functools
import gc
import importlib.metadata
import inspect
import shutil
import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

from fakes.judge import ScriptedJudge
from fakes.service import running
from markscheme import Client
from markscheme_server import logs
from markscheme_server.config import Settings
from markscheme_server.judge import gateway
from markscheme_server.store import store
from markscheme_server.store.engine import database
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store

# Reading the certificate authorities takes 30 ms of CPU, and each HTTP client does it.
ssl.create_default_context = functools.cache(ssl.create_default_context)
# Accelerate and TRL look packages up at every step and checkpoint, which parses their descriptions.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
importlib.metadata.version = functools.cache(importlib.metadata.version)


class _CompiledStatements(dict[tuple[Any, ...], Any]):
    """The compiled statements of all databases of a kind, by SQLAlchemy's keys.

    Each test has engines of its own, whose dialect is a part of the keys. Compiling every statement
    anew for each is a third of a typical test's CPU.
    """

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get((key[0].name, *key[1:]), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__((key[0].name, *key[1:]), compiled)


database.create_async_engine = functools.partial(
    database.create_async_engine, execution_options={"compiled_cache": _CompiledStatements()}
)


def _prepare_when_used(repository: type[Any]) -> None:
    """Let the repository build its statements when it is first used.

    A service builds those of all its repositories, which is half of its start; a test needs few.
    """
    prepare_all = repository.__init__

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        self.__dict__["_prepare_all"] = functools.partial(prepare_all, self, *arguments, **options)

    def find(self: Any, name: str) -> Any:
        if "_prepare_all" not in self.__dict__:
            raise AttributeError(name)
        self.__dict__.pop("_prepare_all")()
        return getattr(self, name)

    repository.__init__, repository.__getattr__ = begin, find


for _, found in inspect.getmembers(store, inspect.isclass):
    if found not in (Store, database.Database):
        _prepare_when_used(found)

# As the service has it. Collecting as often as Python does takes a twentieth of all tests' CPU.
gc.set_threshold(50_000, 20, 100)

# A shell has Ctrl-C ignored in the background, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
# By default structlog shows the values of all variables of a traceback: seconds for each.
structlog.get_config()["processors"][-1].exception_formatter = structlog.dev.plain_traceback

LONGEST = (
    "train/test_processes.py",
    "train/test_shards.py",
    "train/test_resume.py",
    "test_guides.py",
    "server/cli/test_server.py",
    "train/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: begun last, one of them would keep the others waiting."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((i for i, begin in enumerate(LONGEST) if file.startswith(begin)), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let no garbage collection go through what was imported: torch alone is a million objects."""
    gc.collect()
    gc.freeze()


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the keys and settings of the machine."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "MARKSCHEME_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a key or a setting of the machine it runs on."""
    clean_environment(monkeypatch)


@pytest.fixture(autouse=True)
def _leave_logs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command configure the logs of the test's process.

    Loggers are cached on first use: later tests could not capture what these write.
    """
    monkeypatch.setattr(logs, "configure", lambda level="info": None)


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    scripted = ScriptedJudge()
    yield scripted
    scripted.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a database without rows, to be copied: quicker than migrating one for each test."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    asyncio.run(prepare(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
def serve(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Callable[..., str]]:
    """Start services with the given settings; each call starts another on the same database."""
    shutil.copy(migrated_sqlite, tmp_path / "markscheme.db")
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running(Settings(_env_file=None, **({"home": tmp_path, "judge": "builtin"} | settings)))
        )


@pytest.fixture
def model_settings(judge: ScriptedJudge, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return settings that use the scripted judge; every database has the same secret."""

    async def secret(_store: Store, _name: str) -> str:
        return "of the tests"

    monkeypatch.setattr(Store, "secret", secret)
    monkeypatch.setattr(gateway, "BREAKER_WAIT_S", 0.5)
    return judge.settings


@pytest.fixture
def service(serve: Callable[..., str]) -> str:
    """Start a service with the builtin judge."""
    return serve()


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[str]:
    """Start a service with the builtin judge, for those tests of a module that leave nothing."""
    home = tmp_path_factory.mktemp("shared")
    shutil.copy(migrated_sqlite, home / "markscheme.db")
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        settings = Settings(_env_file=None, home=home, judge="builtin")
    with running(settings) as url:
        yield url


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(service) as made:
        yield made


@pytest.fixture
def model_client(serve: Callable[..., str], model_settings: dict[str, Any]) -> Iterator[Client]:
    """Connect a client to a service that uses the scripted judge."""
    with Client(serve(**model_settings)) as made:
        yield made
