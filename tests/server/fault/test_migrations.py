"""Test migrations from nothing and from each revision: up, down, two at once, never slow."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from alembic.script import ScriptDirectory

from fakes.bodies import create_rubric
from fakes.fork_server import ForkedProcess
from fakes.processes import PATIENCE_S, environment
from fakes.stores import differences, query
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine import database as database_engine
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance import migrate as migrating
from markscheme_server.store.maintenance.migrate import alembic_config, migrate
from markscheme_server.store.store import Store
from markscheme_server.store.tables import prompts, rubrics

Result = TypeVar("Result")
Work = Callable[[sa.Connection], Any]
REVISIONS = [
    script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()
][::-1]


@pytest.fixture(scope="module", autouse=True)
def _read_the_revisions_once() -> Iterator[None]:
    """Alembic reads and compiles the files of all revisions for each command."""
    read: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        places = config.get_main_option("version_locations")
        if places not in read:
            read[places] = original(config)
        return read[places]

    original = ScriptDirectory.from_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Create an empty database for the service."""
    if dialect == "sqlite":
        (tmp_path / "m.db").touch()
        return f"sqlite+aiosqlite:///{tmp_path / 'm.db'}"
    return driver(str(request.getfixturevalue("empty_database")))


def work(url: str, *steps: Work) -> list[Any]:
    """Run each step in a transaction of its own."""

    async def run(database: Database) -> list[Any]:
        done = []
        for step in steps:
            async with database.writing(ALL_TEAMS) as connection:
                done.append(await connection.run_sync(step))
        return done

    return asyncio.run(using(url, run))


def attempt(url: str, *steps: Work) -> list[Any]:
    """Run each step in a savepoint of one transaction, which is rolled back."""

    def all_steps(connection: sa.Connection) -> list[Any]:
        done = []
        for step in steps:
            with connection.begin_nested():
                done.append(step(connection))
        return done

    async def run(database: Database) -> list[Any]:
        async with database.writing(ALL_TEAMS) as connection:
            done = await connection.run_sync(all_steps)
            await connection.rollback()
        return done

    return asyncio.run(using(url, run))


async def using(url: str, run: Callable[[Database], Awaitable[Result]]) -> Result:
    database = Database(create_engine(url))
    try:
        return await run(database)
    finally:
        await database.close()


def driver(url: str) -> str:
    """Convert the URL to SQLAlchemy's form."""
    return url.replace("postgresql://", "postgresql+asyncpg://")


def migrate_now(url: str) -> None:
    """Migrate as the service does when it starts."""
    asyncio.run(using(url, migrate))


def to(revision: str, *, down: bool = False) -> Work:
    move = alembic.downgrade if down else alembic.upgrade
    return lambda connection: move(alembic_config(connection), revision)


SCHEMA = {
    "sqlite": "SELECT type || name || tbl_name || coalesce(sql, '') FROM sqlite_master ORDER BY 1",
    "postgresql": """
        SELECT concat_ws(' ', c.oid::regclass, c.relkind, obj_description(c.oid, 'pg_class'))
            FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, attnotnull, attidentity,
            format_type(atttypid, atttypmod), attcollation, attgenerated,
            pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
            FROM pg_index JOIN pg_class c ON c.oid = indexrelid
            WHERE relnamespace = 'public'::regnamespace
        ORDER BY 1""",
}
"""Tells all that `differences` compares, in a fraction of its time."""
_compared: dict[tuple[str, ...], Any] = {}


def find_differences(connection: sa.Connection) -> Any:
    """Return the `differences`; a schema that was compared before is not compared again."""
    parts = connection.execute(sa.text(SCHEMA[connection.dialect.name])).scalars()
    schema = (connection.dialect.name, *parts)
    if schema not in _compared:
        _compared[schema] = differences(connection)
    return _compared[schema]


def insert_prompt(connection: sa.Connection) -> None:
    connection.execute(
        sa.text(
            "INSERT INTO prompts (key, messages, created_at) "
            "VALUES ('k', '[]', '2026-01-01 00:00:00+00:00')"
        )
    )


def count_prompts(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT count(*) FROM prompts")).scalar_one())


@pytest.fixture(scope="module")
def moved() -> dict[tuple[str, bool], tuple[int, str]]:
    """Return databases that go from revision to revision, by dialect and whether they go down."""
    return {}


@pytest.fixture
def at(
    dialect: str,
    moved: dict[tuple[str, bool], tuple[int, str]],
    request: pytest.FixtureRequest,
) -> Callable[..., str]:
    """Return a function that returns a database at a revision, in which the test leaves nothing.

    It came there step by step, up from nothing or ``down`` from the newest.
    """
    places = ["base", *REVISIONS]

    def find(revision: str, *, down: bool = False) -> str:
        wanted = places.index(revision)
        now_at, database = moved.pop((dialect, down), (None, ""))
        if now_at is None or (now_at < wanted if down else now_at > wanted):
            now_at, database = 0, str(request.getfixturevalue("url"))
            if down:
                now_at = len(REVISIONS)
                work(database, to("head"))
        way = range(now_at - 1, wanted - 1, -1) if down else range(now_at + 1, wanted + 1)
        work(database, *(to(places[place], down=down) for place in way))
        moved[dialect, down] = wanted, database
        return database

    return find


@pytest.mark.parametrize("revision", ["base", *REVISIONS])
def test_the_tables_come_out_the_same_from_everywhere(
    revision: str, at: Callable[..., str]
) -> None:
    """And what was stored before is there afterwards."""
    before = [insert_prompt] if revision != "base" else []
    *_, difference, count = attempt(
        at(revision), *before, to("head"), find_differences, count_prompts
    )
    assert difference == []
    assert count == (1 if before else 0)


@pytest.mark.parametrize("revision", REVISIONS[::-1])
def test_every_step_can_be_undone_and_done_again(revision: str, at: Callable[..., str]) -> None:
    """The steps above it were undone before."""
    script = ScriptDirectory.from_config(alembic_config()).get_revision(revision)
    *_, difference = attempt(
        at(revision, down=True),
        to(f"{script.down_revision or 'base'}", down=True),
        to("head"),
        find_differences,
    )
    assert difference == []


def test_what_was_spent_before_money_was_exact_is_converted(url: str) -> None:
    def spend(connection: sa.Connection) -> None:
        for i, cost in enumerate((0.1, 0.2, 0.000123457, None)):
            connection.execute(
                sa.text(
                    "INSERT INTO judge_calls (id, team, role, judge, criteria, calls, "
                    "prompt_tokens, completion_tokens, cost_usd, created_at) "
                    "VALUES (:id, 'red', 'verifier', 'j', '[]', 2, 1, 1, :cost, "
                    "'2026-01-01 00:00:00+00:00')"
                ),
                {"id": f"call_{i}", "cost": cost},
            )
        connection.execute(
            sa.text(
                "INSERT INTO teams (name, created_at) VALUES ('red', '2026-01-01 00:00:00+00:00')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO budgets (team, run_id, hard_usd, period, since, spent_usd) "
                "VALUES ('red', '', 2.5, 'total', 0, 0.1 + 0.2)"
            )
        )

    work(url, to("0005"), spend, to("head"))

    async def look() -> None:
        store = Store(url)
        try:
            _, total, _ = await store.usage.aggregate("red", [], since=None, until=None)
            assert (total.sums["cost_usd"], total.sums["unpriced_calls"]) == (0.300123457, 2)
            [budget] = await store.budgets.find("red")
            assert (budget.hard_usd, budget.soft_usd, budget.spent_usd) == (2.5, None, 0.3)
            again = await store.budgets.put(
                "red", None, hard_usd=3.0, soft_usd=None, window="total", actor=Actor()
            )
            assert again.spent_usd == 0.300123457
        finally:
            await store.close()

    asyncio.run(look())


def test_earlier_calls_know_how_many_criteria_they_asked_about(
    at: Callable[..., str],
) -> None:
    def ask(connection: sa.Connection) -> None:
        for i, criteria in enumerate(("[]", '["a", "b", "c"]')):
            connection.execute(
                sa.text(
                    "INSERT INTO judge_calls (id, team, role, judge, criteria, calls, "
                    "prompt_tokens, completion_tokens, created_at) "
                    "VALUES (:id, 'red', 'verifier', 'j', :criteria, 1, 1, 1, "
                    "'2026-01-01 00:00:00+00:00')"
                ),
                {"id": f"call_{i}", "criteria": criteria},
            )

    def asked(connection: sa.Connection) -> list[int]:
        query = sa.text("SELECT asked FROM judge_calls ORDER BY id")
        return list(connection.execute(query).scalars())

    *_, found = attempt(at("0017", down=True), ask, to("head"), asked)
    assert found == [0, 3]


def test_stored_verdicts_survive_that_a_verdict_may_not_apply(url: str) -> None:
    """Downgrading drops those that the older version cannot read, and keeps the others."""

    def insert(key: str, met: bool | None) -> Work:
        return lambda connection: connection.execute(
            sa.text(
                "INSERT INTO verdicts (key, team, prompt_key, criterion_key, response_key, judge, "
                "met, created_at) VALUES (:key, 'red', 'p', 'c', 'r', 'j', :met, "
                "'2026-01-01 00:00:00+00:00')"
            ),
            {"key": key, "met": met},
        )

    def read(connection: sa.Connection) -> dict[str, Any]:
        return {
            key: None if met is None else bool(met)
            for key, met in connection.execute(sa.text("SELECT key, met FROM verdicts"))
        }

    before = [to("0007"), insert("met", True), insert("not", False)]
    *_, upgraded = work(url, *before, to("0009"), insert("none", None), read)
    assert upgraded == {"met": True, "not": False, "none": None}
    *_, downgraded = work(url, to("0007", down=True), read)
    assert downgraded == {"met": True, "not": False}
    erased = sa.text(
        "INSERT INTO teams (name, created_at, erased_at) VALUES ('red', "
        "'2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00')"
    )
    with pytest.raises(sa.exc.IntegrityError, match="this team was erased"):
        work(url, to("0009"), lambda c: c.execute(erased), insert("late", True))


def test_downgrading_leaves_criteria_that_the_older_version_reads(
    at: Callable[..., str],
) -> None:
    plain = {"id": "c1", "text": "It is blue.", "points": 1}

    def insert(connection: sa.Connection) -> None:
        insert_prompt(connection)
        [key] = connection.execute(sa.select(prompts.c.key)).scalars()
        row = {"id": "r", "team": "red", "prompt_key": key, "version": 1, "content_hash": "h"}
        row |= {"criteria": [plain | {"may_not_apply": True, "metadata": {"a": 1}}, plain]}
        row |= {"origin": "imported", "tags": [], "provenance": {}, "words": "", "metadata": {}}
        connection.execute(rubrics.insert().values(**row, created_at=now()))

    def read(connection: sa.Connection) -> Any:
        return connection.execute(sa.select(rubrics.c.criteria)).scalar_one()

    *_, criteria = attempt(at(REVISIONS[-1]), insert, to("0008", down=True), read)
    assert criteria == [plain, plain]


def test_two_migrators_at_once_both_succeed(empty_database: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("wb") as output:
        running = [
            ForkedProcess(
                ["migrate"],
                cwd=tmp_path,
                env=environment({"database_url": empty_database}),
                output=output,
            )
            for _ in range(2)
        ]
    assert [process.wait(60) for process in running] == [0, 0], said.read_text()
    assert work(driver(empty_database), differences) == [[]]


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", "{head}", None, None


def downgrade():
    op.drop_column("verdicts", "of_the_next_version")


def upgrade():
    op.add_column("verdicts", sa.Column("of_the_next_version", sa.Integer))
"""
"""A migration of a version that is still to come."""


def go_to_next_version(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    """Have migrations in this process go on to the next version's, which does `more`."""
    (folder / "next.py").write_text(NEXT.format(head=REVISIONS[-1]) + more)

    def with_next(connection: sa.Connection | None = None) -> Config:
        config = alembic_config(connection)
        config.set_main_option("path_separator", "os")
        config.set_main_option(
            "version_locations",
            f"{config.get_main_option('script_location')}/versions{os.pathsep}{folder}",
        )
        return config

    monkeypatch.setattr(migrating, "alembic_config", with_next)
    monkeypatch.setattr(migrating, "_newest", lambda: "next")


def test_a_migration_of_a_large_table_may_take_longer_than_other_statements(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_to_next_version(tmp_path, monkeypatch, '    op.execute("SELECT pg_sleep(1)")\n')
    monkeypatch.setattr(database_engine, "COMMAND_TIMEOUT_S", 0.5)
    assert asyncio.run(migrating.prepare(driver(empty_database))) == (None, "next")


def test_a_table_in_use_is_not_waited_for_long(
    serve: Callable[..., str], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next version's migration gets no lock and gives up; this version keeps answering."""
    service = serve(database_url=database)
    rubric_id = create_rubric(service)
    go_to_next_version(tmp_path, monkeypatch)
    answers: list[httpx.Response] = []

    def migrate() -> float:
        begun = time.monotonic()
        with pytest.raises(sa.exc.DBAPIError, match=r"(?i)lock"):
            migrate_now(driver(database))
        return time.monotonic() - begun

    def hold_and_migrate(connection: sa.Connection) -> float:
        connection.execute(sa.text("LOCK TABLE verdicts IN ROW EXCLUSIVE MODE"))
        with (
            ThreadPoolExecutor(1) as pool,
            httpx.Client(base_url=service, verify=False, timeout=PATIENCE_S) as client,
        ):
            migrating = pool.submit(migrate)
            while not migrating.done():
                answers.extend(
                    client.get(path)
                    for path in ("/readyz", "/v1/rubrics", f"/v1/rubrics/{rubric_id}")
                )
                time.sleep(0.05)
            return migrating.result()

    [took_s] = work(driver(database), hold_and_migrate)
    assert took_s <= 20  # the lock is waited for 5 s
    assert query(database, "SELECT version_num FROM alembic_version") == [(REVISIONS[-1],)]
    assert len(answers) > 20
    assert {a.status_code for a in answers} == {200}
    assert max(a.elapsed.total_seconds() for a in answers) <= 4  # not as long as the lock is
    migrate_now(driver(database))
    assert query(database, "SELECT version_num FROM alembic_version") == [("next",)]
    assert (
        httpx.get(f"{service}/v1/rubrics/{rubric_id}", verify=False, timeout=60).status_code == 200
    )


def test_a_newer_database_is_left_alone(url: str) -> None:
    """An older service would not know what it writes into: it does not start."""
    work(
        url,
        to("head"),
        lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")),
    )
    with pytest.raises(Exception, match="9999"):
        migrate_now(url)
