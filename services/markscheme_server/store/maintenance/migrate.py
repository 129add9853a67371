"""Migrate the database, and grant the service's role its privileges.

On PostgreSQL there may be two roles. One owns the tables and migrates them
(``MARKSCHEME_MIGRATION_URL``). The service runs as the other one (``MARKSCHEME_DATABASE_URL``),
which can neither alter a table nor bypass row-level security. Where one role does both, row-level
security still applies to it, unless it is a superuser.
"""

import os
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.engine.database import ALL_TEAMS, NO_TEAM, Database, create_engine
from markscheme_server.store.tables import api_keys, audit_entries, secrets, teams

MIGRATION_LOCK = 5_270_411
"""The advisory lock of a migration (PostgreSQL): one runs at a time."""
_CREATE_ROLE = sa.text("""DO $$ BEGIN
    EXECUTE format('CREATE ROLE %I LOGIN NOBYPASSRLS PASSWORD %L',
        current_setting('markscheme.role'), nullif(current_setting('markscheme.password'), ''));
    END $$""")


class OtherDatabase(Exception):
    """The two URLs are not of the same database."""


async def prepare(url: str, migration_url: str | None = None) -> tuple[str | None, str | None]:
    """Migrate to the newest revision, and grant the role of ``url`` its privileges.

    The role of ``migration_url`` does it, where that is given. Returns the revisions before and
    after. A concurrent call waits, and then has nothing to do. Raises alembic's ``CommandError``
    for a database newer than this code, and `OtherDatabase` where the URLs are not of one database.
    """
    # To index or to copy a large table takes minutes.
    database = Database(create_engine(migration_url or url, create=True, patient=True))
    try:
        async with database.reading(NO_TEAM) as connection:
            before = await connection.run_sync(_revision)
        await migrate(database)
        async with database.reading(NO_TEAM) as connection:
            after = await connection.run_sync(_revision)
        if migration_url is not None:
            await _grant_privileges(database, sa.make_url(url))
            await _check(url, after)
        return before, after
    finally:
        await database.close()


async def find_revision(url: str) -> str | None:
    """Return the database's revision; ``None``: it has no tables of ours.

    Raises `DatabaseMissing` for a SQLite file that does not exist.
    """
    database = Database(create_engine(url))
    try:
        async with database.reading(NO_TEAM) as connection:
            return await connection.run_sync(_revision)
    finally:
        await database.close()


async def _check(url: str, revision: str | None) -> None:
    if await find_revision(url) != revision:
        raise OtherDatabase


async def migrate(database: Database) -> None:
    """Migrate the tables to the newest revision."""
    async with database.writing(ALL_TEAMS) as connection:
        await connection.run_sync(_upgrade)


async def rls_enforced(database: Database) -> bool:
    """Return whether row-level security applies to our role: on PostgreSQL, unless exempt."""
    if database.engine.dialect.name != "postgresql":
        return False
    async with database.reading(NO_TEAM) as connection:
        return not (
            await connection.execute(
                sa.text(
                    "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
                )
            )
        ).scalar_one()


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Return alembic's settings for our revisions, bound to ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        # While a migration waits for a table, all who want it queue behind the migration.
        connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    if _revision(connection) != _newest():
        command.upgrade(alembic_config(connection), "head")


@cache
def _newest() -> str | None:
    """Return the newest of our revisions. Alembic reads and compiles the files of all for it."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def _grant_privileges(database: Database, url: sa.URL) -> None:
    """Create the service's role where it is missing, and grant it only what it needs.

    It may change rows, but only insert into append-only tables.
    """
    if database.engine.dialect.name != "postgresql" or url.username in (
        None,
        database.engine.url.username,
    ):
        return
    role = database.engine.dialect.identifier_preparer.quote(str(url.username))
    async with database.writing(NO_TEAM) as connection:
        await connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
        )
        known = await connection.execute(
            sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": url.username}
        )
        if known.scalar() is None:
            await _create_role(
                connection, str(url.username), str(url.password or os.environ.get("PGPASSWORD", ""))
            )
        for grant in (
            f"GRANT USAGE ON SCHEMA public TO {role}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
            # Append-only tables, and tables whose rows are only marked, never deleted.
            f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {role}",
            f"REVOKE UPDATE, DELETE ON {audit_entries.name}, {secrets.name} FROM {role}",
            f"REVOKE DELETE ON {teams.name}, {api_keys.name} FROM {role}",
        ):
            await connection.execute(sa.text(grant))


async def _create_role(connection: AsyncConnection, role: str, password: str) -> None:
    """Create the role; its name and password are parameters, which the database quotes."""
    await connection.execute(
        sa.text(
            "SELECT set_config('markscheme.role', :role, true), "
            "set_config('markscheme.password', :password, true)"
        ),
        {"role": role, "password": password},
    )
    await connection.execute(_CREATE_ROLE)
