"""What the server's commands share: which database they open, and how they bring it up to date."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command as alembic
from sqlalchemy import Connection

from fakes.shell import command
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.maintenance.migrate import alembic_config


def make_older(file: Path, revision: str) -> None:
    """Create a database as an earlier version left it."""

    def upgrade(connection: Connection) -> None:
        alembic.upgrade(alembic_config(connection), revision)

    async def run() -> None:
        database = Database(create_engine(f"sqlite+aiosqlite:///{file}", create=True))
        async with database.writing(ALL_TEAMS) as connection:
            await connection.run_sync(upgrade)
        await database.close()

    asyncio.run(run())


def test_a_command_that_migrates_an_older_database_says_so_once(tmp_path: Path) -> None:
    make_older(tmp_path / "markscheme.db", "0016")
    first, second = (
        command("teams", "list", directory=tmp_path, settings={"home": tmp_path}) for _ in range(2)
    )
    assert (first.returncode, first.stdout) == (0, second.stdout)
    assert "note: it was at revision 0016 and is at 00" in first.stderr
    assert "note:" not in second.stderr


def test_two_urls_that_name_two_databases_are_refused(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    (tmp_path / "used.db").touch()
    settings = {
        "database_url": f"sqlite:///{tmp_path / 'used.db'}",
        "migration_url": f"sqlite:///{migrated_sqlite}",
    }
    done = command("migrate", directory=tmp_path, settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert "MARKSCHEME_MIGRATION_URL and MARKSCHEME_DATABASE_URL must name one" in done.stderr
    with closing(sqlite3.connect(tmp_path / "used.db")) as used:
        assert used.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
