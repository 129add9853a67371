"""PostgreSQL databases for tests, without rows: emptied and used again instead of made anew."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import sqlalchemy as sa

from fakes.stores import PostgresServer
from markscheme_server.config import Settings
from markscheme_server.store.maintenance.migrate import prepare

TABLES = (
    "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
)
SCHEMA = """SELECT md5(string_agg(part, '|' ORDER BY part)) FROM (
    SELECT concat_ws(' ', c.oid::regclass, c.relacl, c.relrowsecurity, c.relforcerowsecurity)
        FROM pg_class c WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, atttypid, attnotnull)
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
        WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(' ', tablename, policyname, qual, with_check) FROM pg_policies
) AS parts (part)"""
"""A sum of all that a test might change beside rows."""


class MigratedDatabases:
    """Databases of one server. Calling it returns the URL of one that is migrated.

    The owner is an ordinary role, so that row-level security applies. One database is migrated and
    the others are copies of it. Those that are given back are used again.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server, self._numbers = server, itertools.count()
        self._used: list[str] = []
        server.query("CREATE ROLE markscheme LOGIN CREATEROLE")
        server.query("CREATE DATABASE migrated OWNER markscheme")
        settings = Settings(_env_file=None, database_url=self._url("migrated"))
        asyncio.run(prepare(settings.sqlalchemy_url))
        self._rows, self._schema = self._on("migrated", _first_state)

    def __call__(self) -> str:
        while self._used:
            name = self._used.pop()
            if self._on(name, self._empty):
                return self._url(name)
        name = f"test_{next(self._numbers)}"
        self._server.query(f"CREATE DATABASE {name} TEMPLATE migrated OWNER markscheme")
        return self._url(name)

    def give_back(self, url: str) -> None:
        """Let a later test have the database of one that has ended.

        It is emptied then: services of this test may still run. It is not used again if its schema
        was changed.
        """
        self._used.append(str(sa.make_url(url).database))

    def _url(self, name: str) -> str:
        chosen = sa.make_url(self._server.url(name)).set(username="markscheme")
        return chosen.render_as_string(hide_password=False)

    def _on(self, name: str, work: Callable[[asyncpg.Connection], Coroutine[Any, Any, Any]]) -> Any:
        async def run() -> Any:
            connection = await asyncpg.connect(self._server.url(name))
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(run())

    async def _empty(self, connection: asyncpg.Connection) -> bool:
        """Bring the rows to their first state; return false if that is not possible."""
        if await connection.fetchval(SCHEMA) != self._schema:
            return False
        # Foreign keys and triggers are passed over. Most tables are empty, and then DELETE is much
        # quicker than TRUNCATE.
        await connection.execute("SET session_replication_role = replica; SET lock_timeout = '5s'")
        try:
            async with connection.transaction():
                for table, rows in self._rows.items():
                    await connection.execute(f'DELETE FROM "{table}"')  # noqa: S608
                    if rows is not None:
                        await connection.execute(
                            f'INSERT INTO "{table}" '  # noqa: S608
                            f'SELECT * FROM json_populate_recordset(NULL::"{table}", $1)',
                            rows,
                        )
        except asyncpg.LockNotAvailableError:
            return False
        return True


async def _first_state(connection: asyncpg.Connection) -> tuple[dict[str, str | None], str]:
    """Return the rows of each table as JSON (`None`: it has none), and the sum of the schema."""
    tables = [str(row[0]) for row in await connection.fetch(TABLES)]
    rows = {
        table: await connection.fetchval(f'SELECT json_agg(t) FROM "{table}" t')  # noqa: S608
        for table in tables
    }
    return rows, await connection.fetchval(SCHEMA)
