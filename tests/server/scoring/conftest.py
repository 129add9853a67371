"""The scoring services of two processes on one database, without HTTP."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from markscheme_server.store.audit import Actor
from markscheme_server.store.store import Store
from server.scoring.in_process import Scoring


@pytest.fixture(scope="session")
def with_teams(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    """Create a database with the teams red and blue, to be copied."""
    path = tmp_path_factory.mktemp("teams") / "teams.db"

    async def create() -> None:
        store = Store(f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, path)}")
        for team in ("red", "blue"):
            await store.teams.create(team, Actor())
        await store.close()

    asyncio.run(create())
    return path


@pytest.fixture
async def scoring(tmp_path: Path, with_teams: Path) -> AsyncIterator[Scoring]:
    """Services of one process, for the teams red and blue."""
    path = shutil.copy(with_teams, tmp_path / "m.db")
    made = Scoring(Store(f"sqlite+aiosqlite:///{path}"))
    yield made
    await made.aclose()


@pytest.fixture
async def other(scoring: Scoring, tmp_path: Path) -> AsyncIterator[Scoring]:
    """Services of another process on the same database, with a model of its own."""
    made = Scoring(Store(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}"))
    yield made
    await made.aclose()
