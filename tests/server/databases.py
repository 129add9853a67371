"""PostgreSQL databases for tests, without rows: emptied and used again instead of made anew."""

import asyncio
import itertools

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
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._connections: dict[str, asyncpg.Connection] = {}
        """Kept, by database: the first statements of a connection take ten times as long."""
        server.query("CREATE ROLE markscheme LOGIN CREATEROLE")
        server.query("CREATE DATABASE migrated OWNER markscheme")
        settings = Settings(_env_file=None, database_url=self._url("migrated"))
        asyncio.run(prepare(settings.sqlalchemy_url))
        self._schema, self._first_state = self._runner.run(self._look())

    def __call__(self) -> str:
        while self._used:
            name = self._used.pop()
            if self._runner.run(self._empty(name)):
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

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.terminate()  # whether or not the server has ended it
        self._runner.run(asyncio.sleep(0.01))
        self._runner.close()

    async def _look(self) -> tuple[str, str]:
        """Return the sum of the migrated schema, and statements that bring the rows back."""
        connection = await asyncpg.connect(self._server.url("migrated"))
        try:
            statements = []
            for (table,) in await connection.fetch(TABLES):
                # Most tables are empty, and then DELETE is much quicker than TRUNCATE.
                statements.append(f'DELETE FROM "{table}"')  # noqa: S608
                rows = await connection.fetchval(
                    f'SELECT quote_literal(json_agg(t)) FROM "{table}" t'  # noqa: S608
                )
                if rows is not None:
                    statements.append(
                        f'INSERT INTO "{table}" '  # noqa: S608
                        f'SELECT * FROM json_populate_recordset(NULL::"{table}", {rows})'
                    )
            return await connection.fetchval(SCHEMA), "; ".join(statements)
        finally:
            await connection.close()

    async def _empty(self, name: str) -> bool:
        """Bring the rows to their first state; return false if that is not possible."""
        connection = self._connections.get(name)
        if connection is None:
            connection = self._connections[name] = await asyncpg.connect(self._server.url(name))
            # Foreign keys and triggers are passed over.
            await connection.execute(
                "SET session_replication_role = replica; SET lock_timeout = '5s'"
            )
        try:
            if await connection.fetchval(SCHEMA) != self._schema:
                return False
            await connection.execute(self._first_state)  # in one transaction
        except (asyncpg.LockNotAvailableError, asyncpg.PostgresConnectionError, OSError):
            return False
        return True
