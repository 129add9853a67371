"""The engine: SQLite and PostgreSQL behind the same few lines.

SQLite runs in WAL mode; a writing transaction takes its lock at BEGIN, so that two writers queue on the busy
timeout instead of failing at the first write; and it overwrites what it removes. Parameters are hidden from errors:
they hold users' text.
"""

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NewType

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT_S = 5
COMMAND_TIMEOUT_S = 30
PING_TIMEOUT_S = 2
BUSY_TIMEOUT_MS = 30_000
POOL_SIZE = 10
"""Connections of one process. Reads and writes come in batches, so that few are enough; none is opened for a rush."""
_POOL: dict[str, Any] = {
    "pool_size": POOL_SIZE,
    "max_overflow": 0,
    "pool_timeout": COMMAND_TIMEOUT_S,
}
_DATABASE_STATES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX"})
"""Classes of SQL states that are the server's own condition: connections, roles, locks, resources, shutdown."""
_DATA_STATES = frozenset({"22", "54"})
"""Classes that say that a value cannot be taken: of the wrong form, or too large."""
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

ERASED = "this team was erased"
"""What the database says to whoever brings it rows of a team that was erased."""

log = structlog.get_logger()

TeamScope = NewType("TeamScope", str)
"""Whose rows a transaction sees and may write. Every transaction says so when it begins: PostgreSQL's row-level
security then shows it no others, whatever its statements forgot to ask for. SQLite has no such second wall."""
NO_TEAM = TeamScope("")
"""Nobody's: for tables that belong to no team."""
ALL_TEAMS = TeamScope("*")
"""All teams': for maintenance, and for what the organisation's administrator may see."""


def team_scope(*teams: str) -> TeamScope:
    """The rows of these teams, and what other teams let them see. Raises :class:`ValueError` for what is no team's
    name: it goes into a statement as it is."""
    for team in teams:
        if not _TEAM.fullmatch(team):
            raise ValueError("this is not the name of a team")
    return TeamScope(",".join(sorted(set(teams))))


def create_engine(url: str) -> AsyncEngine:
    """An engine for ``url``. A SQLite file and its folder are made when they are missing; nobody but their owner may
    read the file."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        pool = {}
        if parsed.database and parsed.database != ":memory:":
            _make_private(Path(parsed.database))
            pool = _POOL
        engine = create_async_engine(
            parsed, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **pool
        )
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        parsed,
        hide_parameters=True,
        **_POOL,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": COMMAND_TIMEOUT_S,
            "connection_class": _Connection,
        },
    )


def _make_private(file: Path) -> None:
    """Make the file with mode 0600, which SQLite gives to the files beside it too; tighten those that are there."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    for each in (file, *(file.with_name(file.name + ending) for ending in ("-wal", "-shm"))):
        tighten(each, 0o600)


def tighten(path: Path, mode: int) -> None:
    """Take from everyone but the owner what ``mode`` does not give them, where ``path`` is there; say so."""
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


class DatabaseUnreachable(sa.exc.SQLAlchemyError):
    """The database could not be reached, or did not answer in time."""


class ValueRefused(sa.exc.SQLAlchemyError):
    """The driver cannot pass a value on."""


def fault_of(error: sa.exc.SQLAlchemyError) -> Literal["database", "data", "ours"]:
    """Whose fault an error of a query is: the database is away or in a bad condition, a value of the request cannot
    be stored, or the query is wrong."""
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
        return (
            "database"
            if code[:2] in _DATABASE_STATES
            else "data"
            if code[:2] in _DATA_STATES
            else "ours"
        )
    if isinstance(code, int):
        return (
            "data"
            if code & 0xFF in _DATA_SQLITE
            else "ours"
            if code & 0xFF in _OUR_SQLITE
            else "database"
        )
    return "database" if isinstance(error, sa.exc.InterfaceError) else "ours"


def is_full(error: BaseException) -> bool:
    """Whether the database had no room to write."""
    return isinstance(error, sa.exc.DBAPIError) and _code_of(error) in _FULL


def _code_of(error: sa.exc.DBAPIError) -> str | int | None:
    """PostgreSQL's SQL state, or SQLite's result code."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorcode", None)


def is_outage(error: BaseException) -> bool:
    """Whether an error of a query says that the database is away, or that the team was erased; not that it refuses
    these data."""
    return isinstance(error, sa.exc.SQLAlchemyError) and (
        ERASED in str(getattr(error, "orig", "")) or fault_of(error) == "database"
    )


@contextmanager
def _translated() -> Iterator[None]:
    """Raise as SQLAlchemy's what a driver raises as Python's own: time-outs and refused connections, and values that
    it cannot encode."""
    try:
        yield
    except OSError as error:
        raise DatabaseUnreachable(type(error).__name__) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise ValueRefused(type(error).__name__) from error


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """Says whose rows a transaction sees in the round trip that begins it."""

    sight = NO_TEAM

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if query.startswith("BEGIN"):
            query += f" SET LOCAL markscheme.teams = '{self.sight}';"
        return str(await super().execute(query, *args, timeout=timeout))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        "secure_delete=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Statements of one transaction, and which of them answers."""

    statements: tuple[Any, ...]
    answering: int


class Database:
    """Transactions on one engine: ``reading`` never writes, ``writing`` commits at its end or rolls back.

    What is read in one block may be of several moments; nothing here asks for a snapshot.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._insert_new: dict[sa.Table, Any] = {}
        self.full = False
        """Whether the last write found no room on the database's disk."""

    @asynccontextmanager
    async def reading(self, sight: TeamScope) -> AsyncIterator[AsyncConnection]:
        """Raises :class:`sqlalchemy.exc.SQLAlchemyError`, also where the driver raises something else."""
        with _translated():
            async with self.engine.connect() as connection:
                await self._look(connection, sight)
                yield connection

    @asynccontextmanager
    async def writing(self, sight: TeamScope) -> AsyncIterator[AsyncConnection]:
        """As :meth:`reading`; commits at the end of the block."""
        try:
            with _translated():
                async with self.engine.connect() as connection:
                    await self._look(connection, sight)
                    await connection.execution_options(writing=True)
                    async with connection.begin():
                        yield connection
        except sa.exc.SQLAlchemyError as error:
            if is_full(error) and not self.full:
                self.full = True
                log.error(
                    "disk_full",
                    what="the disk of the database is full: nothing can be stored until there is "
                    "room, and until then this process is not ready",
                )
            raise
        if self.full:
            self.full = False
            log.warning("disk_has_room", what="the database stores again")

    async def _look(self, connection: AsyncConnection, sight: TeamScope) -> None:
        if not self._is_sqlite:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.sight = sight

    def combine(self, *statements: Any, answering: int = -1) -> "WriteBatch":
        """Writes that are one transaction; ``answering`` says whose rows :meth:`write` returns.

        PostgreSQL takes them as one statement, where each of them is a round trip otherwise, so none may rely on rows
        that another one has written (foreign keys are checked at the end). SQLite, which has no such statements and
        no round trips, takes them one by one.
        """
        if self._is_sqlite:
            return WriteBatch(statements, answering)
        rest = list(statements)
        answer = rest.pop(answering)
        parts = [
            each if each.is_select else each.returning(sa.literal(1).label("written"))
            for each in rest
        ]
        return WriteBatch(
            (answer.add_cte(*(part.cte(f"part{i}") for i, part in enumerate(parts))),), 0
        )

    async def write(
        self,
        sight: TeamScope,
        writes: "WriteBatch",
        parameters: Mapping[str, Any],
        *,
        first: Iterable[tuple[Any, Mapping[str, Any]]] = (),
    ) -> Sequence[sa.Row[Any]]:
        """Run statements that belong combine, all with the same parameters; ``first`` come others of the same
        transaction, each with its own."""
        answer: Sequence[sa.Row[Any]] = ()
        async with self.writing(sight) as connection:
            for statement, own in first:
                await connection.execute(statement, own)
            for statement in writes.statements:
                result = await connection.execute(statement, parameters)
                if statement is writes.statements[writes.answering] and result.returns_rows:
                    answer = result.all()
        return answer

    async def insert_new(
        self, connection: AsyncConnection, table: sa.Table, rows: Sequence[dict[str, Any]]
    ) -> None:
        """Insert rows; a row whose key is taken is left as it is."""
        if table not in self._insert_new:
            self._insert_new[table] = self.insert_rows(table).on_conflict_do_nothing()
        await connection.execute(self._insert_new[table], {table.name: self.pack(rows)})

    def insert_rows(
        self,
        table: sa.Table,
        where: Callable[[Any], sa.ColumnElement[bool]] | None = None,
        beside: Sequence[sa.Column[Any]] = (),
    ) -> Any:
        """An INSERT of the rows bound to the parameter of the table's name; bind what :meth:`pack` makes of them.

        ``where``: which of them, by their columns and those ``beside`` them that the table does not have.
        """
        rows = self.rows([*table.c, *beside], table.name)
        return self.insert(table).from_select(
            [c.name for c in table.c],
            sa.select(*(rows[c.name] for c in table.c)).where(where(rows) if where else sa.true()),
        )

    def rows(self, columns: Sequence[sa.Column[Any]], name: str) -> Any:
        """The rows bound to the parameter ``name``, as columns of these names and types.

        They travel as one JSON text: one statement and one bound parameter for any number of rows, where the drivers'
        own way is a statement a row.
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
            .table_valued(*(sa.column(c.name, c.type) for c in columns), name=f"given_{name}")
            .render_derived(with_types=True)
            .c
        )

    def pack(self, rows: Sequence[dict[str, Any]]) -> str:
        """Rows as :meth:`rows` takes them."""
        # The rows of a batch have few times, mostly one.
        return json.dumps(list(rows), ensure_ascii=False, default=lru_cache(maxsize=4)(self._time))

    def usd(self, nano: int | None) -> int | str | None:
        """Nano-dollars as :meth:`pack` takes them for a column of money."""
        return nano if nano is None or self._is_sqlite else str(Decimal(nano).scaleb(-9))

    def _time(self, value: datetime) -> str:
        return value.strftime("%Y-%m-%d %H:%M:%S.%f") if self._is_sqlite else value.isoformat()

    def insert(self, table: sa.Table) -> Any:
        """An INSERT of the dialect's own, for its ON CONFLICT clauses."""
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    def each(self, name: str) -> sa.ColumnElement[str]:
        """The keys bound to the parameter ``name`` as a column of rows; bind what :meth:`keys` makes of them.

        One parameter whatever their number, so one statement and one plan. Statements are built once: to build one
        takes several times as long as to run it.
        """
        if self._is_sqlite:
            return (
                sa.func.json_each(sa.bindparam(name, type_=sa.String)).table_valued("value").c.value
            )
        return sa.func.unnest(_array(name)).column_valued()

    def in_keys(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Whether ``column`` is among the keys bound to the parameter ``name``."""
        if self._is_sqlite:
            return column.in_(sa.select(self.each(name)))
        return column == sa.func.any(_array(name))

    def keys(self, keys: Iterable[str]) -> Any:
        """The keys, each once and in order, as :meth:`each` and :meth:`in_keys` take them."""
        ordered = sorted(set(keys))
        return json.dumps(ordered) if self._is_sqlite else ordered

    def contains(
        self, column: sa.Column[Any], element: str | Mapping[str, str]
    ) -> sa.ColumnElement[bool]:
        """Whether the JSON array in ``column`` has this text among its elements, or an object with these fields."""
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

    def searchable(self, words: str) -> Any:
        """Words as a column that is searched in keeps them."""
        return words if self._is_sqlite else sa.func.to_tsvector(_ENGLISH, words)

    def finds(
        self, text: str, column: sa.Column[Any], key: sa.Column[Any], index: sa.TableClause
    ) -> sa.ColumnElement[bool]:
        """Whether all words of ``text`` are in ``column``, whatever their endings; nothing in it is syntax. A text
        without anything to search for finds nothing. ``index``: SQLite's, which holds the words beside the ``key``."""
        if not self._is_sqlite:
            return column.bool_op("@@")(sa.func.plainto_tsquery(_ENGLISH, text))
        words = " ".join(f'"{word}"' for word in dict.fromkeys(_WORD.findall(text)))
        return (
            key.in_(sa.select(index.c.rubric_id).where(index.c.words.match(words)))
            if words
            else sa.false()
        )

    @property
    def _is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @property
    def clock(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 on the database's own clock, which all processes share."""
        if self._is_sqlite:
            return (sa.func.julianday("now", type_=sa.Double) - 2440587.5) * 86400.0
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def day(self, moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[str]:
        """The day of a time in UTC, as YYYY-MM-DD."""
        if self._is_sqlite:
            return sa.func.strftime("%Y-%m-%d", moment, type_=sa.String)
        return sa.func.to_char(sa.func.timezone("UTC", moment), "YYYY-MM-DD", type_=sa.String)

    async def ping(self) -> None:
        """Raise unless the database answers within :data:`PING_TIMEOUT_S`."""
        async with asyncio.timeout(PING_TIMEOUT_S), self.reading(NO_TEAM) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


def _array(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(
        sa.bindparam(name, type_=postgresql.ARRAY(sa.String)), postgresql.ARRAY(sa.String)
    )
