"""The scoring services of two processes on one database, without HTTP."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from markscheme_server.store.audit import Actor
from markscheme_server.store.store import Store
from server.scoring.in_process import Scoring


@pytest.fixture
async def scoring(tmp_path: Path, migrated_sqlite: Path) -> AsyncIterator[Scoring]:
    """Services of one process, for the teams red and blue."""
    path = shutil.copy(migrated_sqlite, tmp_path / "m.db")
    store = Store(f"sqlite+aiosqlite:///{path}")
    for team in ("red", "blue"):
        await store.teams.create(team, Actor())
    yield Scoring(store)
    await store.drain()
    await store.close()


@pytest.fixture
async def other(scoring: Scoring, tmp_path: Path) -> AsyncIterator[Scoring]:
    """Services of another process on the same database, with a model of its own."""
    store = Store(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}")
    yield Scoring(store)
    await store.drain()
    await store.close()
