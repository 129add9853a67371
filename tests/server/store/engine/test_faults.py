"""Whose fault an error of a query is, who may read a SQLite file, and what a full disk does."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from fakes.processes import ServiceProcess, eventually
from markscheme_server.api.errors import database_error
from markscheme_server.config import Settings
from markscheme_server.store.engine.database import (
    ALL_TEAMS,
    Database,
    DatabaseMissing,
    create_engine,
    fault_of,
)
from markscheme_server.store.store import Store


@pytest.fixture
def url(database_url: str) -> str:
    return Settings(_env_file=None, database_url=database_url).sqlalchemy_url  # type: ignore[call-arg]


async def failure(
    url: str, statement: str, parameters: dict[str, Any] | None = None
) -> SQLAlchemyError:
    """Return the error that a statement raises."""
    database = Database(create_engine(url))
    try:
        with pytest.raises(SQLAlchemyError) as raised:
            async with database.writing(ALL_TEAMS) as connection:
                await connection.execute(sa.text(statement), parameters or {})
        return raised.value
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("statement", "parameters", "status"),
    [
        ("SELECT * FROM no_such_table", {}, 500),
        ("SELEC 1", {}, 500),
        ("INSERT INTO teams (name) VALUES (NULL)", {}, 500),
        ("UPDATE claims SET owner = :value", {"value": "\ud800"}, 422),
        ("UPDATE claims SET fence = :value", {"value": 2**80}, 422),
    ],
)
async def test_a_wrong_query_is_ours_and_a_bad_value_the_callers(
    statement: str, parameters: dict[str, Any], status: int, url: str
) -> None:
    assert database_error(await failure(url, statement, parameters)).status == status


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("57P03", 503),
        ("53100", 503),
        ("53300", 503),
        ("40P01", 503),
        ("55P03", 503),
        ("25006", 503),
        ("22P05", 422),
        ("54000", 422),
        ("42P01", 500),
        ("23505", 500),
    ],
)
def test_the_states_of_postgresql(state: str, status: int, new_postgres: Any) -> None:
    url = Settings(_env_file=None, database_url=new_postgres()).sqlalchemy_url  # type: ignore[call-arg]
    error = asyncio.run(
        failure(url, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
    )
    assert database_error(error).status == status


async def test_nobody_there_and_no_answer_in_time_are_the_databases() -> None:
    error = await failure("postgresql+asyncpg://u:p@127.0.0.1:1/x", "SELECT 1")
    assert fault_of(error) == "database"
    database = Database(create_engine("sqlite+aiosqlite:///:memory:"))
    with pytest.raises(SQLAlchemyError) as raised:
        async with database.reading(ALL_TEAMS):
            raise TimeoutError
    assert fault_of(raised.value) == "database"
    await database.close()


async def test_a_full_disk_is_said_once_in_words_and_passes(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    path = shutil.copy(migrated_sqlite, tmp_path / "m.db")
    store = Store(f"sqlite+aiosqlite:///{path}")
    pages = 1

    def bound(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(store.database.engine.sync_engine, "checkout", bound)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(SQLAlchemyError) as raised:
                async with store.database.writing(ALL_TEAMS) as connection:
                    await connection.execute(
                        sa.text("CREATE TABLE more AS SELECT zeroblob(100000) AS bytes")
                    )
            answer = database_error(raised.value)
            assert (answer.status, answer.code) == (503, "database")
            assert "disk" in answer.message
        assert store.database.disk_full
        pages = 1_000_000
        await store.ready()
        assert not store.database.disk_full
    await store.close()
    said = [line["event"] for line in logged]
    assert said.count("disk_full") == 1
    assert said[-1] == "disk_has_room"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o777:o}" for path in folder.glob("markscheme.db*")}


def test_files_are_their_owners_alone(tmp_path: Path, umask: None) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "markscheme.db").touch(mode=0o644)
    process = ServiceProcess(home, {"judge": "builtin"}).wait_ready()
    try:
        found = modes(home)
        assert set(found) == {"markscheme.db", "markscheme.db-wal", "markscheme.db-shm"}
        assert set(found.values()) == {"600"}
        assert home.stat().st_mode & 0o777 == 0o700
        assert process.output.read_text().count('"permissions_tightened"') == 2
    finally:
        process.kill()
    for path in home.glob("markscheme.db*"):  # as an older version left them
        path.chmod(0o644)
    process = ServiceProcess(home, {"judge": "builtin"}).wait_ready()
    try:
        assert set(modes(home).values()) == {"600"}
    finally:
        process.kill()


def test_a_folder_that_holds_other_things_too_is_left_as_it_is(tmp_path: Path, umask: None) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    database = Database(create_engine(f"sqlite+aiosqlite:///{shared / 'm.db'}", create=True))
    asyncio.run(database.close())
    assert shared.stat().st_mode & 0o777 == 0o755
    assert (shared / "m.db").stat().st_mode & 0o777 == 0o600
    new = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'new' / 'm.db'}", create=True))
    asyncio.run(new.close())
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_missing_file_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "typed-wrong" / "m.db"
    with pytest.raises(DatabaseMissing, match=f"there is no database {file}"):
        create_engine(f"sqlite+aiosqlite:///{file}")
    assert not file.parent.exists()


def test_readyz_says_that_the_disk_is_full_until_there_is_room(tmp_path: Path) -> None:
    """The service may not let a file grow beyond what it is."""
    import resource

    import psutil

    process = ServiceProcess(tmp_path, {"judge": "builtin"}).wait_ready()
    try:
        running = psutil.Process(process.process.pid)
        running.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        rubric = {"prompt": "p" * 200_000, "criteria": [{"text": "It is long.", "points": 1}]}
        refused = httpx.post(f"{process.url}/v1/rubrics", json=rubric, timeout=30, verify=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database")
        answer = httpx.get(f"{process.url}/readyz", timeout=30, verify=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database")
        assert "disk" in answer.json()["error"]["message"]
        assert "disk of the database is full" in process.output.read_text()
        running.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for attempt in eventually():
            with attempt:
                assert (
                    httpx.get(f"{process.url}/readyz", timeout=30, verify=False).status_code == 200
                )
    finally:
        process.kill()
