"""Execute statements through PostgreSQL's driver, without SQLAlchemy's connection and results.

SQLAlchemy still compiles the statement, pools the connections and names the errors. What is left
out computes a cache key of the statement for each execution, and starts five greenlets for a
transaction. A statement of its own is also sent without BEGIN and COMMIT: one round trip instead
of three. A scoring request makes six or seven of them (`python -m runs.statements` measures one).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from sqlalchemy.util import await_only

MAX_IDLE_IN_TRANSACTION_S = 10
"""Seconds after which PostgreSQL ends the transaction of a process that fell silent in it.

Shorter than a statement's timeout, so that those who wait for its locks get them in time.
"""
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError)

Rows = Sequence[Sequence[Any]]


class ScopedConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose statements run in a scope, which row-level security reads.

    Transactions begin in `scope`. No transaction outlives its process for long, frozen or cut off:
    it would hold its locks.
    """

    scope = ""
    session_scope: str | None = None
    """The scope of statements outside a transaction; `None`: not known. See `enter`."""
    _is_direct: bool | None = None

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """Execute a statement; with ``BEGIN`` send ``SET LOCAL`` of the scope and of the time.

        All take one round trip. asyncpg sends ``BEGIN`` this way, and SQLAlchemy nothing else.
        """
        if not query.startswith("BEGIN"):
            return str(await super().execute(query, *args, **options))
        try:
            # SET takes no parameters; `team_scope` has checked that no name holds a quotation mark.
            scoped = (
                f"{query} SET LOCAL markscheme.teams = '{self.scope}'; "
                f"SET LOCAL idle_in_transaction_session_timeout = '{MAX_IDLE_IN_TRANSACTION_S}s'"
            )
            return str(await super().execute(scoped, *args, **options))
        except BaseException:
            # SQLAlchemy takes the transaction for not begun, and would not roll it back.
            self.terminate()
            raise

    async def enter(self, scope: str) -> bool:
        """Make ``scope`` that of statements outside a transaction.

        Returns false, and does nothing, where a pooler stands in between: it may send each
        transaction to another session, which has another's scope.
        """
        if self._is_direct is None:
            # A pooler makes up the number that it tells clients.
            own = await self.fetchval("SELECT pg_backend_pid()")
            self._is_direct = own == self.get_server_pid()
        if self._is_direct:
            self.session_scope = None  # unless the answer says so
            await super().execute(f"SET markscheme.teams = '{scope}'")
            self.session_scope = scope
        return self._is_direct


class DriverStatement:
    """A statement as the driver takes it: its text, and its parameters in their order."""

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        if compiled.post_compile_params or compiled.literal_execute_params:
            raise TypeError("the text of this statement depends on its parameters")
        self.sql, self._dialect = str(compiled), dialect
        self._parameters: list[tuple[str, Callable[[Any], Any] | None]] = []
        self._own: dict[str, Any] = {}
        for name in compiled.positiontup:
            bound = compiled.binds[name]
            if not bound.required:
                self._own[name] = bound.value
            process = bound.type.dialect_impl(dialect).bind_processor(dialect)
            self._parameters.append((name, process))
        self._types = [column.type for column in getattr(statement, "exported_columns", ())]
        self._convert: list[Callable[[Any], Any] | None] | None = None

    async def fetch(self, connection: ScopedConnection, parameters: Mapping[str, Any]) -> Rows:
        """Execute it with ``parameters`` and its own ones; return rows as SQLAlchemy would."""
        values = {**self._own, **parameters}
        arguments = [
            values[name] if process is None else process(values[name])
            for name, process in self._parameters
        ]
        if self._convert is None:
            self._convert = await self._converters(connection)
        rows: Rows = await connection.fetch(self.sql, *arguments)
        if not any(self._convert):
            return rows
        return [
            tuple(
                value if convert is None else convert(value)
                for value, convert in zip(row, self._convert, strict=True)
            )
            for row in rows
        ]

    async def _converters(self, connection: ScopedConnection) -> list[Callable[[Any], Any] | None]:
        """Return what makes the driver's values those of the columns' types, by column."""
        if not self._types:
            return []
        attributes = (await connection.prepare(self.sql)).get_attributes()
        return [
            type_.dialect_impl(self._dialect).result_processor(self._dialect, attribute.type.oid)
            for type_, attribute in zip(self._types, attributes, strict=True)
        ]


def run(
    engine: sa.Engine,
    scope: str,
    steps: Iterable[tuple[DriverStatement, Mapping[str, Any]]],
    *,
    alone: bool,
) -> Rows:
    """Execute statements in one transaction, in ``scope``; return the last one's rows.

    ``steps``: statements with their parameters, taken one by one. ``alone``: there is only one,
    which needs no BEGIN. Call it by `sqlalchemy.util.greenlet_spawn`. Raises
    `sqlalchemy.exc.DBAPIError`, as a connection of SQLAlchemy does, and Python's own errors from
    the driver.
    """
    dbapi = engine.dialect.loaded_dbapi
    connection: Any = None
    sql = "BEGIN"
    try:
        connection = engine.raw_connection()
        driver: ScopedConnection = connection.driver_connection
        if alone and driver.session_scope != scope:
            alone = await_only(driver.enter(scope))
        transaction = None
        if not alone:
            driver.scope, transaction = scope, driver.transaction()
            await_only(transaction.start())
        rows: Rows = ()
        try:
            for statement, parameters in steps:
                sql = statement.sql
                rows = await_only(statement.fetch(driver, parameters))
            if transaction is not None:
                await_only(transaction.commit())
        except _ERRORS:
            if transaction is not None and not driver.is_closed() and driver.is_in_transaction():
                await_only(transaction.rollback())
            raise
        return rows
    except (dbapi.Error, *_ERRORS) as error:
        raw = None if connection is None else connection.driver_connection
        lost = engine.dialect.is_disconnect(error, None, None) if raw is None else raw.is_closed()
        if raw is not None and (lost or raw.is_in_transaction()):
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            sql,
            None,
            error if isinstance(error, dbapi.Error) else _as_dbapi(dbapi, error),
            dbapi.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=engine.dialect,
        ) from error
    except BaseException:
        # Cancelled, or out of time: the driver may still wait for the answer.
        if connection is not None:
            connection.invalidate()
        raise
    finally:
        if connection is not None:
            connection.close()


def _as_dbapi(dbapi: Any, error: Exception) -> Exception:
    """Return a driver's error as SQLAlchemy's adapter raises it, by which it chooses its own."""
    kind = (
        dbapi.IntegrityError
        if isinstance(error, asyncpg.IntegrityConstraintViolationError)
        else dbapi.InterfaceError
        if isinstance(error, asyncpg.InterfaceError)
        else dbapi.Error
    )
    # The rest of what it says, its detail, holds rows.
    made: Exception = kind(error.args[0] if error.args else "", error)
    made.__cause__ = error
    return made


def discard_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool replace connections that the server has closed. A listener of `checkout`."""
    if connection.driver_connection.is_closed():
        raise sa.exc.InvalidatePoolError
