"""Statements that run through PostgreSQL's driver behave as those of SQLAlchemy's connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from markscheme_server.config import Settings
from markscheme_server.store.engine.database import (
    ALL_TEAMS,
    NO_TEAM,
    Database,
    create_engine,
    fault_of,
    team_scope,
)
from markscheme_server.store.engine.driver import ScopedConnection
from markscheme_server.store.tables import claims, past_usage

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PID = sa.select(sa.func.pg_backend_pid())


@pytest.fixture(scope="module")
def url(new_postgres: Callable[[], str]) -> str:
    return Settings(_env_file=None, database_url=new_postgres()).sqlalchemy_url  # type: ignore[call-arg]


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    made = Database(create_engine(url))
    yield made
    await made.close()


async def failure(
    database: Database, statement: Any, parameters: dict[str, Any]
) -> SQLAlchemyError:
    with pytest.raises(SQLAlchemyError) as raised:
        await database.read(NO_TEAM, statement, parameters)
    return raised.value


async def test_values_are_those_of_sqlalchemys_results(database: Database) -> None:
    nano = past_usage.c.cost_usd.type
    query = sa.select(
        sa.cast(sa.bindparam("usd", type_=nano), nano).label("usd"),
        sa.cast({"a": [1]}, sa.JSON).label("json"),
        sa.cast(TIME, sa.DateTime(timezone=True)).label("time"),
        sa.cast(sa.literal(2.5), sa.Double).label("real"),
        sa.null().label("none"),
    )
    ((*read,),) = await database.read(NO_TEAM, query, {"usd": 1_500_000_001})
    async with database.reading(NO_TEAM) as connection:
        assert read == list((await connection.execute(query, {"usd": 1_500_000_001})).one())
    assert read[:3] == [1_500_000_001, {"a": [1]}, TIME]


async def test_each_transaction_begins_in_its_own_scope(database: Database) -> None:
    query = sa.select(sa.func.current_setting("markscheme.teams"))
    for scope in (team_scope("a"), ALL_TEAMS, team_scope("b", "c"), NO_TEAM):
        assert [tuple(row) for row in await database.read(scope, query, {})] == [(scope,)]


async def sent(database: Database) -> list[str]:
    """Record what the pool's one connection sends from now on, a line for each round trip."""
    raw = await database.engine.raw_connection()
    connection: Any = raw.driver_connection
    raw.close()
    lines: list[str] = []
    connection.add_query_logger(lambda record: lines.append(record.query.partition("\n")[0]))
    return lines


async def drained(lines: list[str]) -> list[str]:
    """Return the lines and forget them; the driver logs a query after it was answered."""
    await asyncio.sleep(0)
    found = list(lines)
    lines.clear()
    return found


async def test_a_statement_of_its_own_takes_one_round_trip(database: Database) -> None:
    query = sa.select(sa.func.current_setting("markscheme.teams"))
    text = "SELECT current_setting($1::VARCHAR) AS current_setting_1"
    await database.read(NO_TEAM, query, {})
    lines = await sent(database)
    for _ in range(2):
        await database.read(NO_TEAM, query, {})
        assert await drained(lines) == [text]
    await database.read(team_scope("a"), query, {})
    assert await drained(lines) == ["SET markscheme.teams = 'a'", text]
    # What a transaction sets ends with it.
    async with database.reading(ALL_TEAMS) as connection:
        assert (await connection.execute(query)).scalar_one() == ALL_TEAMS
    await drained(lines)
    assert [tuple(row) for row in await database.read(team_scope("a"), query, {})] == [("a",)]
    assert await drained(lines) == [text]


async def test_a_scope_that_could_not_be_set_is_set_again(database: Database) -> None:
    query = sa.select(sa.func.current_setting("markscheme.teams"))
    await database.read(team_scope("a"), query, {})
    raw = await database.engine.raw_connection()
    connection: Any = raw.driver_connection
    raw.close()
    with pytest.raises(asyncpg.PostgresError):
        await connection.enter("it's no scope")
    assert [tuple(row) for row in await database.read(team_scope("a"), query, {})] == [("a",)]


async def test_behind_a_pooler_each_statement_is_a_transaction_with_its_scope(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may send it to a session that has another's scope."""
    monkeypatch.setattr(ScopedConnection, "get_server_pid", lambda _: 1)
    query = sa.select(sa.func.current_setting("markscheme.teams"))
    for scope in (team_scope("a"), NO_TEAM):
        assert [tuple(row) for row in await database.read(scope, query, {})] == [(scope,)]
    lines = await sent(database)
    await database.read(team_scope("a"), query, {})
    begin, statement, end = await drained(lines)
    assert begin.startswith("BEGIN; SET LOCAL markscheme.teams = 'a'; ")
    assert (statement[:6], end) == ("SELECT", "COMMIT;")
    (pid,) = await database.read(NO_TEAM, PID, {})
    division = sa.select(sa.literal(1) / sa.cast(sa.bindparam("value"), sa.Integer))
    await failure(database, division, {"value": 0})
    assert await database.read(NO_TEAM, PID, {}) == [pid]


async def test_errors_have_the_same_causes(database: Database) -> None:
    assert fault_of(await failure(database, sa.select(sa.table("none", sa.column("x"))), {})) == (
        "ours"
    )
    number = sa.select(sa.cast(sa.bindparam("value"), sa.Integer))
    assert fault_of(await failure(database, number, {"value": 2**80})) == "data"
    text = sa.select(sa.cast(sa.bindparam("value", type_=sa.String), sa.Text))
    assert fault_of(await failure(database, text, {"value": "\ud800"})) == "data"
    division = sa.select(sa.literal(1) / sa.cast(sa.bindparam("value"), sa.Integer))
    error = await failure(database, division, {"value": 0})
    assert isinstance(error, DBAPIError)
    assert not error.connection_invalidated
    assert "value" not in str(error.params)
    with pytest.raises(KeyError):
        await database.read(NO_TEAM, text, {})


async def test_what_failed_is_rolled_back_and_the_connection_serves_on(database: Database) -> None:
    key = sa.bindparam("id", type_=sa.String)
    insert = sa.insert(claims).values(key=key, owner="o", fence=1, expires_at=0.0)
    batch = database.combine(insert.returning(claims.c.key))
    assert await database.write(NO_TEAM, batch, {"id": "a"}) == [("a",)]
    (pid,) = await database.read(NO_TEAM, PID, {})
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(NO_TEAM, batch, {"id": "a"}, first=[(insert, {"id": "b"})])
    assert await database.read(NO_TEAM, sa.select(claims.c.key), {}) == [("a",)]
    assert await database.read(NO_TEAM, PID, {}) == [pid]


async def test_a_cancelled_statement_leaves_no_transaction_behind(database: Database) -> None:
    slow = asyncio.ensure_future(
        database.read(NO_TEAM, sa.select(sa.func.pg_sleep(60), sa.null()), {})
    )
    sleeping = sa.select(sa.func.count()).select_from(
        sa.table("pg_stat_activity", sa.column("query"), sa.column("pid"))
    )
    sleeping = sleeping.where(
        sa.column("query").like("SELECT pg_sleep%"), sa.column("pid") != sa.func.pg_backend_pid()
    )
    while (await database.read(NO_TEAM, sleeping, {}))[0][0] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert database.engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert len(await database.read(NO_TEAM, PID, {})) == 1


async def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used(
    database: Database, url: str
) -> None:
    raw = await database.engine.raw_connection()
    driver: Any = raw.driver_connection
    raw.close()
    pid = driver.get_server_pid()
    other = Database(create_engine(url))
    end = sa.select(sa.func.pg_terminate_backend(sa.bindparam("pid", type_=sa.Integer)))
    await other.read(NO_TEAM, end, {"pid": pid})
    await other.close()
    while not driver.is_closed():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await database.read(NO_TEAM, PID, {}))[0][0] != pid


async def test_a_connection_that_is_lost_meanwhile_is_told_as_lost(database: Database) -> None:
    suicide = sa.select(sa.func.pg_terminate_backend(sa.func.pg_backend_pid()), sa.literal(1))
    error = await failure(database, suicide, {})
    assert fault_of(error) == "database"
    assert len(await database.read(NO_TEAM, PID, {})) == 1
