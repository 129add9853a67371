"""Connections and transactions on SQLite and PostgreSQL, and the SQL in which they differ.

SQLite runs in WAL mode, and overwrites what it deletes. A writing transaction takes its lock at
BEGIN, so that two writers queue on the busy timeout instead of failing at the first write. Errors
hide the parameters of statements, because they hold users' text.
"""

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NewType
from weakref import WeakKeyDictionary

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from markscheme_server.store.engine import driver

CONNECT_TIMEOUT_S = 5
COMMAND_TIMEOUT_S = 30
PING_TIMEOUT_S = 2
CLOSE_S = 1.0
BUSY_TIMEOUT_MS = 30_000
SQLITE_CACHE_KIB = 512
"""Page cache of each SQLite connection. A sort may use as much memory, or 1 MiB if that is more.

SQLite's default of 2000 KiB is no faster: a write through one connection empties the caches of the
others, and the operating system caches the file. With it each connection came to hold 6 MiB.
"""
POOL_SIZE = 10
"""Connections of one process; few are enough, because reads and writes come in batches."""
_POOL: dict[str, Any] = {
    "pool_size": POOL_SIZE,
    "max_overflow": 0,
    "pool_timeout": COMMAND_TIMEOUT_S,
}
_DATABASE_STATES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX"})
"""Classes of SQL states of the server: connections, roles, locks, resources, shutdown."""
_DATA_STATES = frozenset({"22", "54"})
"""Classes of SQL states for values that cannot be stored: malformed or too large."""
_OUR_SQLITE = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
)
_DATA_SQLITE = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH})
_FULL = frozenset({"53100", sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})
_TEAM = re.compile(r"[a-z0-9._-]+")
_WORD = re.compile(r"[^\W_]+")
_ENGLISH: sa.ColumnElement[Any] = sa.literal_column("'english'")

_ERASED = "this team was erased"
"""The message of the trigger that refuses rows of a team that was erased (migration 0004)."""

log = structlog.get_logger()

TeamScope = NewType("TeamScope", str)
"""Whose rows a transaction may read and write; see `driver.ScopedConnection`.

PostgreSQL's row-level security enforces it, whatever a statement forgot to filter by. SQLite has no
row-level security.
"""
NO_TEAM = TeamScope("")
"""No team's rows: for tables that belong to no team."""
ALL_TEAMS = TeamScope("*")
"""All teams' rows: for maintenance, and for what the organisation's administrator may see."""


def team_scope(*teams: str) -> TeamScope:
    """Return the scope of these teams: their rows, and what other teams let them see.

    Raises ``ValueError`` for an invalid name: it becomes part of a statement.
    """
    for team in teams:
        if not _TEAM.fullmatch(team):
            raise ValueError("this is not the name of a team")
    return TeamScope(",".join(sorted(set(teams))))


def create_engine(url: str, *, create: bool = False, patient: bool = False) -> AsyncEngine:
    """Create an engine for ``url``.

    ``create`` makes a missing SQLite file and its folder, which only their owner may read; without
    it a missing file raises `DatabaseMissing`. SQLite itself would make an empty database.
    ``patient``: a statement may take longer than `COMMAND_TIMEOUT_S`.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        pool = {}
        if parsed.database and parsed.database != ":memory:":
            file = Path(parsed.database)
            if not create and not file.is_file():
                raise DatabaseMissing(f"there is no database {file}")
            _make_private(file)
            pool = _POOL
        engine = create_async_engine(
            parsed, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **pool
        )
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    engine = create_async_engine(
        parsed,
        hide_parameters=True,
        **_POOL,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": None if patient else COMMAND_TIMEOUT_S,
            "connection_class": driver.ScopedConnection,
        },
    )
    sa.event.listen(engine.sync_engine, "checkout", driver.discard_closed)
    return engine


def _make_private(file: Path) -> None:
    """Create the file with mode 0600, which its WAL files inherit; tighten those that exist."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        # The mode is given at creation: after a later chmod others might have it open already.
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    for each in (file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))):
        tighten_permissions(each, 0o600)


def tighten_permissions(path: Path, mode: int) -> None:
    """Take from group and others the permissions beyond ``mode``, where ``path`` exists; log it."""
    try:
        before = path.stat().st_mode & 0o777
        if before & ~mode & 0o077:
            path.chmod(before & mode)
            log.warning(
                "permissions_tightened",
                path=str(path),
                before=f"{before:04o}",
                now=f"{before & mode:04o}",
            )
    except FileNotFoundError:
        pass
    except PermissionError:
        log.warning("permissions_too_wide", path=str(path), why="it belongs to another user")


class DatabaseMissing(sa.exc.SQLAlchemyError):
    """There is no such SQLite file."""


class DatabaseUnreachable(sa.exc.SQLAlchemyError):
    """The database could not be reached, or did not answer in time."""


class ValueRefused(sa.exc.SQLAlchemyError):
    """The driver cannot encode a value."""


class TeamErased(sa.exc.IntegrityError):
    """The rows belong to a team that was erased."""


def fault_of(error: sa.exc.SQLAlchemyError) -> Literal["database", "data", "ours"]:
    """Return the cause of a query's error.

    ``database``: it is unreachable or in a bad condition; ``data``: a value of the request cannot
    be stored; ``ours``: the query is wrong.
    """
    if isinstance(error, (DatabaseUnreachable, sa.exc.TimeoutError)):
        return "database"
    if isinstance(error, ValueRefused):
        return "data"
    if not isinstance(error, sa.exc.DBAPIError):
        return "ours"
    if isinstance(getattr(error.orig, "__cause__", None), asyncpg.DataError):
        return "data"
    if error.connection_invalidated:
        return "database"
    code = _code_of(error)
    if isinstance(code, str):
        if code[:2] in _DATABASE_STATES:
            return "database"
        return "data" if code[:2] in _DATA_STATES else "ours"
    if isinstance(code, int):
        primary = code & 0xFF  # the rest of the number is an extended code
        if primary in _DATA_SQLITE:
            return "data"
        return "ours" if primary in _OUR_SQLITE else "database"
    return "database" if isinstance(error, sa.exc.InterfaceError) else "ours"


def is_disk_full(error: BaseException) -> bool:
    """Return whether the database's disk was full."""
    return isinstance(error, sa.exc.DBAPIError) and _code_of(error) in _FULL


def _code_of(error: sa.exc.DBAPIError) -> str | int | None:
    """Return PostgreSQL's SQL state, or SQLite's result code."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorcode", None)


def is_outage(error: BaseException) -> bool:
    """Return whether an error concerns all of a team's requests, not these data.

    The database is unreachable or in a bad condition, or the team was erased.
    """
    return isinstance(error, TeamErased) or (
        isinstance(error, sa.exc.SQLAlchemyError) and fault_of(error) == "database"
    )


@contextmanager
def _driver_errors_as_sqlalchemys() -> Iterator[None]:
    """Translate Python's own errors from drivers: timeouts, refused connections, bad values."""
    try:
        yield
    except OSError as error:
        raise DatabaseUnreachable(type(error).__name__) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise ValueRefused(type(error).__name__) from error
    except sa.exc.IntegrityError as error:
        # The trigger's SQL state is that of every violated check, so its message tells it apart.
        if error.orig is not None and _ERASED in str(error.orig):
            raise TeamErased(
                error.statement, error.params, error.orig, hide_parameters=True
            ) from error
        raise


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Otherwise the driver begins transactions by itself; `_begin_sqlite` does it here.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        # In WAL mode this cannot corrupt the file; a power cut may lose the last commits.
        "synchronous=NORMAL",
        # SQLite does not check them unless told to, on each connection.
        "foreign_keys=ON",
        "secure_delete=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        f"cache_size=-{SQLITE_CACHE_KIB}",  # negative: KiB instead of pages
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Statements of one transaction, and the index of the one whose rows are returned."""

    statements: tuple[Any, ...]
    returning: int


class Database:
    """Transactions on one engine: ``reading`` never writes; ``writing`` commits or rolls back.

    The isolation level is read committed: statements of one block may see different states.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        # Encodes a time once: the rows of a batch have few different ones.
        time = lru_cache(maxsize=4)(self._time)
        self._encode = json.JSONEncoder(ensure_ascii=False, default=time).encode
        self._insert_new: dict[sa.Table, Any] = {}
        self._driver_statements: WeakKeyDictionary[Any, driver.DriverStatement] = (
            WeakKeyDictionary()
        )
        self.tasks: set[asyncio.Task[None]] = set()
        """Batches that are being handled, whether or not somebody waits for them."""
        self.disk_full = False
        """Whether the last write failed because the database's disk was full."""

    @asynccontextmanager
    async def reading(self, scope: TeamScope) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction in ``scope`` that is rolled back at the end of the block.

        Raises `sqlalchemy.exc.SQLAlchemyError`, also where the driver raises something else.
        """
        with _driver_errors_as_sqlalchemys():
            async with self.engine.connect() as connection:
                await self._set_scope(connection, scope)
                yield connection

    @asynccontextmanager
    async def writing(self, scope: TeamScope) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction in ``scope`` that commits at the end of the block. See `reading`."""
        with self._noticing_a_full_disk(), _driver_errors_as_sqlalchemys():
            async with self.engine.connect() as connection:
                await self._set_scope(connection, scope)
                # `_begin_sqlite` reads it, and takes the write lock at BEGIN.
                await connection.execution_options(writing=True)
                async with connection.begin():
                    yield connection

    @contextmanager
    def _noticing_a_full_disk(self) -> Iterator[None]:
        """Keep `disk_full` true from a write that found the disk full to one that succeeds."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            if is_disk_full(error) and not self.disk_full:
                self.disk_full = True
                log.error(
                    "disk_full",
                    what="the disk of the database is full: nothing can be stored until there is "
                    "room, and until then this process is not ready",
                )
            raise
        if self.disk_full:
            self.disk_full = False
            log.warning("disk_has_room", what="the database stores again")

    async def _set_scope(self, connection: AsyncConnection, scope: TeamScope) -> None:
        """Set the scope in which the connection's next transaction begins."""
        if not self._is_sqlite:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            raw.scope = scope

    async def read(
        self, scope: TeamScope, statement: Any, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the rows of one statement, as tuples, read in a transaction of its own.

        One round trip on PostgreSQL, where `reading` takes three and several times the computing,
        if the statement was built once and is kept.
        """
        if not self._is_sqlite:
            with _driver_errors_as_sqlalchemys():
                return await self._run(scope, [(statement, parameters)], alone=True)
        async with self.reading(scope) as connection:
            return (await connection.execute(statement, parameters)).all()

    async def read_each(
        self, scope: TeamScope, statements: Sequence[Any], parameters: Mapping[str, Any]
    ) -> list[Sequence[Any]]:
        """Return the rows of each statement; all have the same parameters. See `read`.

        They run side by side on PostgreSQL, where most of the time is spent waiting for its
        answers, and one after the other on SQLite.
        """
        if not self._is_sqlite:
            return list(
                await asyncio.gather(*(self.read(scope, each, parameters) for each in statements))
            )
        async with self.reading(scope) as connection:
            return [(await connection.execute(each, parameters)).all() for each in statements]

    async def _run(
        self, scope: TeamScope, steps: Iterable[tuple[Any, Mapping[str, Any]]], *, alone: bool
    ) -> driver.Rows:
        """Execute statements in one transaction through PostgreSQL's driver; see `driver.run`."""
        return await greenlet_spawn(
            driver.run,
            self.engine.sync_engine,
            scope,
            # One by one, between the answers: what a step binds may be long.
            ((self._driver_statement(statement), bound) for statement, bound in steps),
            alone=alone,
        )

    def _driver_statement(self, statement: Any) -> driver.DriverStatement:
        found = self._driver_statements.get(statement)
        if found is None:
            found = driver.DriverStatement(statement, self.engine.dialect)
            self._driver_statements[statement] = found
        return found

    def combine(self, *statements: Any, returning: int = -1) -> "WriteBatch":
        """Combine writes into one transaction; `write` returns the rows of ``returning``.

        On PostgreSQL they become one statement, which saves round trips: none may depend on rows
        that another one writes (foreign keys are checked at the end). SQLite has neither round
        trips nor such statements, and executes them one by one.
        """
        if self._is_sqlite:
            return WriteBatch(statements, returning)
        rest = list(statements)
        answer = rest.pop(returning)
        parts = [
            each if each.is_select else each.returning(sa.literal(1).label("written"))
            for each in rest
        ]
        # PostgreSQL runs CTEs that write whether or not the main statement reads them.
        return WriteBatch(
            (answer.add_cte(*(part.cte(f"part{i}") for i, part in enumerate(parts))),), 0
        )

    async def write(
        self,
        scope: TeamScope,
        batch: "WriteBatch",
        parameters: Mapping[str, Any],
        *,
        first: Iterable[tuple[Any, Mapping[str, Any]]] | None = None,
    ) -> Sequence[Any]:
        """Execute a batch in one transaction, all its statements with the same parameters.

        ``first`` are statements to execute before it, each with parameters of its own. Without any
        a batch takes one round trip on PostgreSQL. Returns rows as tuples.
        """
        if not self._is_sqlite:
            with self._noticing_a_full_disk(), _driver_errors_as_sqlalchemys():
                own = ((each, parameters) for each in batch.statements)
                return await self._run(scope, chain(first or (), own), alone=first is None)
        rows: Sequence[Any] = ()
        async with self.writing(scope) as connection:
            for statement, own_parameters in first or ():
                await connection.execute(statement, own_parameters)
            for statement in batch.statements:
                result = await connection.execute(statement, parameters)
                if statement is batch.statements[batch.returning] and result.returns_rows:
                    rows = result.all()
        return rows

    async def insert_new(
        self, connection: AsyncConnection, table: sa.Table, rows: Sequence[dict[str, Any]]
    ) -> None:
        """Insert rows; a row whose key exists is left as it is."""
        if table not in self._insert_new:
            # Kept, because building a statement takes longer than running it.
            self._insert_new[table] = self.insert_rows(table).on_conflict_do_nothing()
        await connection.execute(self._insert_new[table], {table.name: self.pack(rows)})

    def insert_rows(
        self,
        table: sa.Table,
        where: Callable[[Any], sa.ColumnElement[bool]] | None = None,
        extra: Sequence[sa.Column[Any]] = (),
    ) -> Any:
        """Return an INSERT of the rows bound to the parameter of the table's name; see `pack`.

        ``where`` selects rows by their columns and the ``extra`` ones, which the table lacks.
        """
        rows = self.rows([*table.c, *extra], table.name)
        return self.insert(table).from_select(
            [c.name for c in table.c],
            sa.select(*(rows[c.name] for c in table.c)).where(where(rows) if where else sa.true()),
        )

    def rows(self, columns: Sequence[sa.Column[Any]], name: str) -> Any:
        """Return the rows bound to the parameter ``name``, as columns of these names and types.

        They are sent as one JSON text: one statement with one parameter for any number of rows. The
        drivers' own way is a statement per row.
        """
        if self._is_sqlite:
            value = (
                sa.func.json_each(sa.bindparam(name, type_=sa.String)).table_valued("value").c.value
            )
            return (
                sa.select(
                    *(
                        sa.func.json_extract(value, f"$.{c.name}", type_=c.type).label(c.name)
                        for c in columns
                    )
                )
                .subquery()
                .c
            )
        text = sa.cast(sa.bindparam(name, type_=sa.String), postgresql.JSON)
        return (
            sa.func.json_to_recordset(text)
            .table_valued(*(sa.column(c.name, c.type) for c in columns), name=f"bound_{name}")
            .render_derived(with_types=True)
            .c
        )

    def pack(self, rows: Sequence[dict[str, Any]]) -> str:
        """Encode rows as the parameter of `rows`."""
        return self._encode(list(rows))

    def usd(self, nano: int | None) -> int | str | None:
        """Encode nano-dollars as `pack` needs them for a column of money."""
        # A string, because `json` cannot write a Decimal and a float would round it.
        return nano if nano is None or self._is_sqlite else str(Decimal(nano).scaleb(-9))

    def _time(self, value: datetime) -> str:
        return value.strftime("%Y-%m-%d %H:%M:%S.%f") if self._is_sqlite else value.isoformat()

    def insert(self, table: sa.Table) -> Any:
        """Return the dialect's own INSERT, for its ON CONFLICT clauses."""
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    def key_rows(self, name: str) -> sa.ColumnElement[str]:
        """Return the keys bound to the parameter ``name`` as a column of rows; see `keys`.

        One parameter for any number of keys makes one statement and one plan. Build statements
        once: building one takes several times as long as running it.
        """
        if self._is_sqlite:
            return (
                sa.func.json_each(sa.bindparam(name, type_=sa.String)).table_valued("value").c.value
            )
        return sa.func.unnest(_array(name)).column_valued()

    def in_keys(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition that ``column`` is among the keys bound to ``name``."""
        if self._is_sqlite:
            return column.in_(sa.select(self.key_rows(name)))
        return column == sa.func.any(_array(name))

    def keys(self, keys: Iterable[str]) -> Any:
        """Encode keys as the parameter of `key_rows` and `in_keys`: unique and sorted."""
        ordered = sorted(set(keys))
        return json.dumps(ordered) if self._is_sqlite else ordered

    def contains(
        self, column: sa.Column[Any], element: str | Mapping[str, str]
    ) -> sa.ColumnElement[bool]:
        """Return the condition that a JSON array has this text, or an object with these fields."""
        if not self._is_sqlite:
            return sa.cast(column, postgresql.JSONB).contains([element])
        each = sa.func.json_each(column).table_valued("value").c.value
        same = (
            [each == element]
            if isinstance(element, str)
            else [
                sa.func.json_extract(each, f"$.{name}") == value for name, value in element.items()
            ]
        )
        return sa.exists(sa.select(each).where(*same))

    def search_vector(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
        """Encode a text for a column of type `tables.WORDS`."""
        return text if self._is_sqlite else sa.func.to_tsvector(_ENGLISH, text)

    def matches(
        self, text: str, column: sa.Column[Any], key: sa.Column[Any], index: sa.TableClause
    ) -> sa.ColumnElement[bool]:
        """Return the condition that ``column`` has all words of ``text``, whatever their endings.

        Nothing in ``text`` is syntax; one without words matches nothing. ``index`` is SQLite's
        full-text index, which holds the words of each ``key``.
        """
        if not self._is_sqlite:
            return column.bool_op("@@")(sa.func.plainto_tsquery(_ENGLISH, text))
        # Quoted words are literals in FTS5; only letters and digits are left of the text.
        words = " ".join(f'"{word}"' for word in dict.fromkeys(_WORD.findall(text)))
        return (
            key.in_(sa.select(index.c.rubric_id).where(index.c.words.match(words)))
            if words
            else sa.false()
        )

    @property
    def clock(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 on the database's clock, which all processes share."""
        if self._is_sqlite:
            # 2440587.5 is the Julian day of 1970-01-01.
            return (sa.func.julianday("now", type_=sa.Double) - 2440587.5) * 86400.0
        # Not `now()`: it is the time at which the transaction began, before it waited for locks.
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def day(self, moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[str]:
        """Return the day of a time in UTC, as YYYY-MM-DD."""
        if self._is_sqlite:
            return sa.func.strftime("%Y-%m-%d", moment, type_=sa.String)
        return sa.func.to_char(sa.func.timezone("UTC", moment), "YYYY-MM-DD", type_=sa.String)

    async def ping(self) -> None:
        """Raise unless the database answers within `PING_TIMEOUT_S`."""
        async with asyncio.timeout(PING_TIMEOUT_S), self.reading(NO_TEAM) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def drain(self) -> None:
        """Wait until the batches in `tasks` are handled."""
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def close(self) -> None:
        """Close the connections; wait `CLOSE_S` for those in use, by requests cut off just now."""
        pool, until = self.engine.pool, time.monotonic() + CLOSE_S
        # The pool has no event for it.
        while isinstance(pool, sa.QueuePool) and pool.checkedout() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self.engine.dispose()


def _array(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(
        sa.bindparam(name, type_=postgresql.ARRAY(sa.String)), postgresql.ARRAY(sa.String)
    )
