"""Execute statements through PostgreSQL's driver, without SQLAlchemy's connection and results.

SQLAlchemy still compiles the statement, pools the connections and translates the driver's errors.
What is left out computes a cache key of the statement for each execution and starts five greenlets
for a transaction. A small read takes half of the computing this way (`python -m runs.statements`).
A scoring request makes about eight transactions of one statement each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

Rows = Sequence[Sequence[Any]]


class DriverStatement:
    """A statement as the driver takes it: its text, and its parameters in their order."""

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        if compiled.post_compile_params:
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

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values to bind: the statement's own, and those of ``parameters``."""
        values = {**self._own, **parameters}
        return tuple(
            values[name] if process is None else process(values[name])
            for name, process in self._parameters
        )

    def rows(self, cursor: Any) -> Rows:
        """Return the rows, with values as the columns' types have them in Python."""
        rows: Rows = cursor.fetchall() if cursor.description else ()
        if not rows:
            return ()
        if self._convert is None:
            self._convert = [
                type_.dialect_impl(self._dialect).result_processor(self._dialect, column[1])
                for type_, column in zip(self._types, cursor.description, strict=True)
            ]
        if not any(self._convert):
            return rows
        return [
            tuple(
                value if convert is None else convert(value)
                for value, convert in zip(row, self._convert, strict=True)
            )
            for row in rows
        ]


def run(
    engine: sa.Engine, scope: str, steps: Iterable[tuple[DriverStatement, Mapping[str, Any]]]
) -> Rows:
    """Execute statements in one transaction that begins in ``scope``; return the last one's rows.

    ``steps``: statements with their parameters, taken one by one.
    Call it by `sqlalchemy.util.greenlet_spawn`. Raises `sqlalchemy.exc.DBAPIError`, as a connection
    of SQLAlchemy does, and Python's own errors from the driver.
    """
    errors, connection = engine.dialect.loaded_dbapi.Error, None
    sql = "BEGIN"
    try:
        connection = engine.raw_connection()
        driver: Any = connection.driver_connection
        driver.scope = scope
        cursor = connection.cursor()
        rows: Rows = ()
        for statement, parameters in steps:
            sql = statement.sql
            cursor.execute(sql, statement.arguments(parameters))
            rows = statement.rows(cursor)
        connection.commit()
        return rows
    except errors as error:
        raw: Any = None if connection is None else connection.dbapi_connection
        lost = engine.dialect.is_disconnect(error, raw, None)
        if lost and connection is not None:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            sql,
            None,
            error,
            errors,
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
            connection.close()  # rolls back what was not committed


def discard_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool replace connections that the server has closed. A listener of `checkout`."""
    if connection.driver_connection.is_closed():
        raise sa.exc.InvalidatePoolError
