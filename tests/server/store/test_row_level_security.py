"""PostgreSQL's second wall: as the service's own role, with the tables owned by another one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from fakes.service import running
from fakes.stores import query
from markscheme_server.config import Settings
from markscheme_server.store.engine.database import (
    ALL_TEAMS,
    NO_TEAM,
    Database,
    TeamScope,
    create_engine,
    team_scope,
)
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance.migrate import OtherDatabase, prepare, rls_enforced
from markscheme_server.store.maintenance.prune import Pruner
from markscheme_server.store.store import Store
from markscheme_server.store.tables import metadata
from server.organisation import OPERATOR, call
from server.store.maintenance.pruning import every
from server.store.three_teams import TEAMS, fill

OPEN = {
    "teams": "names, which every team may know: rubrics are shared with them",
    "api_keys": (
        "who calls is found out by them, before there is a team; of a key there is only a digest"
    ),
    "claims": "their keys are hashes, which name the team's work and nobody else's",
    "secrets": "the deployment's own",
    "endpoint_probes": "what doctor found out about judges' endpoints",
    "alembic_version": "the revision",
}
"""The tables without row-level security, with reasons. Protect a new table or add it here."""
ROWS: dict[str, list[dict[str, Any]]] = {}
"""All there is, by table, as nobody but a maintainer sees it."""
RED = team_scope("red")


def driver(url: str, role: str = "markscheme_app") -> str:
    return (
        sa.make_url(url)
        .set(drivername="postgresql+asyncpg", username=role)
        .render_as_string(hide_password=False)
    )


@pytest.fixture(scope="module")
def url(new_postgres: Callable[[], str]) -> str:
    """Create a database with three teams' data: owner migrates, service role fills."""
    owner = new_postgres()

    async def make() -> None:
        await asyncio.gather(
            *(prepare(driver(owner), driver(owner, "markscheme")) for _ in range(2))
        )
        store = Store(driver(owner))
        await fill(store)
        async with store.database.reading(ALL_TEAMS) as connection:
            for table in metadata.sorted_tables:
                ROWS[table.name] = [
                    dict(row) for row in (await connection.execute(sa.select(table))).mappings()
                ]
        await store.drain()
        await store.close()

    asyncio.run(make())
    return driver(owner)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    made = Database(create_engine(url))
    yield made
    await made.close()


class Undone(Exception):
    """Ends a transaction that is not to stay."""


async def tried(
    database: Database, sight: TeamScope, work: Callable[[AsyncConnection], Any]
) -> Any:
    """Return the result of some work, then undo the work."""
    with suppress(Undone):
        async with database.writing(sight) as connection:
            found = await work(connection)
            raise Undone
    return found


async def refused(
    database: Database, sight: TeamScope, statement: Any, words: str = "row-level security"
) -> None:
    with pytest.raises(DBAPIError, match=words):
        async with database.writing(sight) as connection:
            await connection.execute(
                sa.text(statement) if isinstance(statement, str) else statement
            )


async def seen(connection: AsyncConnection, table: sa.Table) -> list[dict[str, Any]]:
    return [dict(row) for row in (await connection.execute(sa.select(table))).mappings()]


def walled() -> list[sa.Table]:
    return [table for table in metadata.sorted_tables if table.name not in OPEN]


def owned() -> list[sa.Table]:
    """Those that say whose a row is."""
    return [table for table in walled() if "team" in table.c]


def of(team: str, table: str) -> dict[str, Any]:
    """Return a row of the team's; for rubrics, one that nobody else sees."""
    shared = {row["rubric_id"] for row in ROWS["shares"]}
    return next(
        row
        for row in ROWS[table]
        if team == (row["owner"] if table == "shares" else row["team"])
        and (table != "rubrics" or (row["visibility"] == "private" and row["id"] not in shared))
    )


async def test_the_role_is_made_once_and_can_do_no_more_than_it_must(
    url: str, database: Database
) -> None:
    owner = driver(url, "markscheme")
    first = await prepare(url, owner)
    assert first[0] == first[1] == (await prepare(url))[1], (
        "also where only the service's role is known"
    )
    assert await rls_enforced(database)
    async with database.reading(NO_TEAM) as connection:
        rights = (
            await connection.execute(
                sa.text(
                    "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin, "
                    "pg_has_role(current_user, 'markscheme', 'MEMBER') "
                    "FROM pg_roles WHERE rolname = current_user"
                )
            )
        ).one()
    assert tuple(rights) == (False, False, False, False, True, False)


async def test_each_table_is_behind_the_wall_or_said_not_to_be(
    url: str, database: Database
) -> None:
    async with database.reading(NO_TEAM) as connection:
        tables = {
            name: (on, forced)
            for name, on, forced in await connection.execute(
                sa.text(
                    "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class "
                    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
                )
            )
        }
    assert {name for name, walls in tables.items() if walls != (True, True)} == set(OPEN)
    assert set(tables) == {*metadata.tables, "alembic_version"}
    assert all(ROWS[table.name] for table in walled()), "a table without rows shows nothing"


async def test_without_a_team_no_row_is_seen_and_none_can_be_added(database: Database) -> None:
    async with database.reading(NO_TEAM) as connection:
        assert {table.name: await seen(connection, table) for table in walled()} == {
            table.name: [] for table in walled()
        }
    for table in walled():
        if table.name not in ("prompts", "texts"):
            await refused(database, NO_TEAM, table.insert().values(ROWS[table.name][0]))


async def test_a_team_sees_what_is_its_own_or_shared_with_it(database: Database) -> None:
    async with database.reading(RED) as connection:
        found = {table.name: await seen(connection, table) for table in walled()}
    shared = {row["rubric_id"] for row in ROWS["shares"] if row["team"] == "red"}
    rubrics = [
        r
        for r in ROWS["rubrics"]
        if r["team"] == "red" or r["visibility"] == "organisation" or r["id"] in shared
    ]
    assert {r["team"] for r in rubrics} == {"red", "blue"}
    own = {
        name: [row for row in ROWS[name] if row["team"] == "red"]
        for name in (table.name for table in owned())
    }
    own_groups = {row["id"] for row in own["assignments"]}
    rollouts = [row for row in ROWS["rollouts"] if row["assignment_id"] in own_groups]
    gathered_ids = {row["id"] for row in own["gathered_groups"]}
    gathered = [row for row in ROWS["gathered_rollouts"] if row["group_id"] in gathered_ids]
    own_rubrics = {row["id"] for row in own["rubrics"]}
    prompts = {row["prompt_key"] for row in rubrics + own["assignments"] + own["teacher_responses"]}
    texts = {row["text_key"] for row in rollouts + gathered + own["teacher_responses"]}
    expected = own | {
        "rubrics": rubrics,
        "rollouts": rollouts,
        "gathered_rollouts": gathered,
        "shares": [row for row in ROWS["shares"] if "red" in (row["team"], row["owner"])],
        "inductions": [row for row in ROWS["inductions"] if row["rubric_id"] in own_rubrics],
        "prompts": [row for row in ROWS["prompts"] if row["key"] in prompts],
        "texts": [row for row in ROWS["texts"] if row["key"] in texts],
    }
    assert {name: sorted(map(repr, rows)) for name, rows in found.items()} == {
        name: sorted(map(repr, rows)) for name, rows in expected.items()
    }
    assert all(len(found[name]) < len(ROWS[name]) for name in found)


@pytest.mark.parametrize("table", owned(), ids=str)
async def test_no_row_is_anothers_to_add_to_change_or_to_remove(
    table: sa.Table, database: Database
) -> None:
    whose = table.c.owner if table.name == "shares" else table.c.team
    await refused(database, RED, table.insert().values(of("blue", table.name)))
    if table.name == "audit_entries":  # not even its own
        for statement in (sa.update(table).values(action="x"), sa.delete(table)):
            await refused(database, RED, statement, "permission denied")
        return
    await refused(database, RED, sa.update(table).where(whose == "red").values({whose: "blue"}))

    async def work(connection: AsyncConnection) -> list[int]:
        key = table.primary_key.columns[0]
        return [
            (await connection.execute(statement.where(whose != "red"))).rowcount
            for statement in (sa.update(table).values({key: key}), sa.delete(table))
        ]

    assert await tried(database, RED, work) == [0, 0]


async def test_what_refers_to_a_row_is_added_and_moved_only_beside_the_teams_own(
    database: Database,
) -> None:
    for name, column, whole in (
        ("rollouts", "assignment_id", "assignments"),
        ("gathered_rollouts", "group_id", "gathered_groups"),
        ("inductions", "rubric_id", "rubrics"),
    ):
        table = metadata.tables[name]
        theirs = {row["id"] for row in ROWS[whole] if row["team"] == "blue"}
        row = next(row for row in ROWS[name] if row[column] in theirs)
        await refused(database, RED, table.insert().values(row))
        await refused(database, RED, sa.update(table).values({column: row[column]}))


async def test_a_share_that_is_not_the_owners_shows_nothing(database: Database) -> None:
    shares, rubrics, prompts = (metadata.tables[name] for name in ("shares", "rubrics", "prompts"))
    theirs = of("blue", "rubrics")
    share = {"rubric_id": theirs["id"], "team": "red", "owner": "blue"}
    await refused(database, RED, shares.insert().values(share))

    async def forge(connection: AsyncConnection) -> list[dict[str, Any]]:
        await connection.execute(shares.insert().values(share | {"owner": "red"}))
        return [row for row in await seen(connection, rubrics) if row["id"] == theirs["id"]] + [
            row for row in await seen(connection, prompts) if row["key"] == theirs["prompt_key"]
        ]

    assert await tried(database, RED, forge) == []
    async with database.reading(team_scope("blue")) as connection:
        assert theirs in await seen(connection, rubrics)


async def test_what_refers_to_anothers_rubric_shows_neither_it_nor_its_prompt(
    database: Database,
) -> None:
    rubrics, prompts = (metadata.tables[name] for name in ("rubrics", "prompts"))
    theirs = of("blue", "rubrics")

    async def refer(connection: AsyncConnection) -> list[dict[str, Any]]:
        await connection.execute(
            metadata.tables["assignments"]
            .insert()
            .values(
                of("red", "assignments") | {"id": "asg_x", "rubric_id": theirs["id"], "step": 99}
            )
        )
        await connection.execute(
            rubrics.insert().values(
                of("red", "rubrics") | {"id": "rub_x", "version": 99, "parent_id": theirs["id"]}
            )
        )
        return [row for row in await seen(connection, rubrics) if row["id"] == theirs["id"]] + [
            row for row in await seen(connection, prompts) if row["key"] == theirs["prompt_key"]
        ]

    assert await tried(database, RED, refer) == []


@pytest.mark.parametrize("name", ["prompts", "texts"])
async def test_what_is_named_by_its_hash_is_added_and_never_changed(
    name: str, database: Database
) -> None:
    table = metadata.tables[name]
    new = ROWS[name][0] | {"key": "k" * 64}

    async def work(connection: AsyncConnection) -> list[int]:
        await database.insert_new(connection, table, [new, ROWS[name][0]])
        assert new not in await seen(connection, table), "nothing of the team refers to it"
        return [
            (await connection.execute(statement)).rowcount
            for statement in (sa.update(table).values(key=table.c.key), sa.delete(table))
        ]

    assert await tried(database, RED, work) == [0, 0]
    upsert = database.insert(table).values(ROWS[name][0])
    await refused(
        database, RED, upsert.on_conflict_do_update(index_elements=["key"], set_={"key": "x"})
    )


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE audit_entries",
        "DROP TABLE verdicts",
        "ALTER TABLE rubrics ADD COLUMN x integer",
        "ALTER TABLE rubrics DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE rubrics NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY reading ON rubrics",
        "CREATE POLICY all_of_it ON rubrics USING (true)",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "DROP TRIGGER refuse_erased ON verdicts",
        (
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NEW; END'"
        ),
        "ALTER ROLE markscheme_app BYPASSRLS",
        "SET ROLE markscheme",
        "SET SESSION AUTHORIZATION markscheme",
        "SET session_replication_role = replica",
        "CREATE TABLE more (x integer)",
        "INSERT INTO alembic_version VALUES ('0')",
        "UPDATE alembic_version SET version_num = '0'",
        "DELETE FROM alembic_version",
        "DELETE FROM teams",
        "DELETE FROM api_keys",
        "UPDATE secrets SET value = 'x'",
        "DELETE FROM secrets",
    ],
)
async def test_the_service_cannot_touch_the_wall(statement: str, database: Database) -> None:
    await refused(database, ALL_TEAMS, statement, "permission denied|must be owner")


async def test_the_audit_trail_is_only_added_to_also_by_its_owner(url: str) -> None:
    owner = Database(create_engine(driver(url, "markscheme")))
    try:
        for statement in (
            "UPDATE audit_entries SET action = 'x'",
            "DELETE FROM audit_entries",
            "TRUNCATE audit_entries",
        ):
            await refused(owner, ALL_TEAMS, statement, "append-only")
    finally:
        await owner.close()


def test_two_databases_are_not_taken_for_one(url: str, new_postgres: Callable[[], str]) -> None:
    empty = (
        sa.make_url(new_postgres()).set(database="postgres").render_as_string(hide_password=False)
    )
    with pytest.raises(OtherDatabase):
        asyncio.run(prepare(driver(empty), driver(url, "markscheme")))


def test_a_service_runs_as_the_role(new_postgres: Callable[[], str]) -> None:
    """Start from an empty database: migrate as the owner, do everything else as the role.

    Everything else: make, score, share, prune and erase.
    """
    owner = new_postgres()
    app = sa.make_url(owner).set(username="markscheme_app").render_as_string(hide_password=False)
    settings = Settings(
        _env_file=None,
        database_url=app,
        migration_url=owner,
        judge="builtin",
        api_key=OPERATOR,
        key_pepper="a pepper for the tests",
    )
    with running(settings) as url:
        keys = {}
        for team in TEAMS[:2]:
            assert call(url, "POST", "/v1/teams", OPERATOR, {"name": team}).status_code == 201
            keys[team] = call(
                url,
                "POST",
                "/v1/keys",
                OPERATOR,
                {"team": team, "scopes": ["read", "score", "induce"]},
            ).json()["key"]
        made = call(
            url,
            "POST",
            "/v1/rubrics",
            keys["red"],
            {
                "prompt": "Name a colour.",
                "criteria": [
                    {
                        "text": "It says red.",
                        "points": 1,
                        "check": {"kind": "contains", "texts": ["red"]},
                    }
                ],
            },
        ).json()["id"]
        batch = {
            "reuse": "frozen",
            "run": {"id": "run", "step": 0},
            "groups": [
                {"id": "g", "prompt": "Name a colour.", "rollouts": [{"id": "r", "text": "red"}]}
            ],
        }

        def scored() -> Any:
            return call(url, "POST", "/v1/scores", keys["blue"], batch).json()["groups"][0][
                "rollouts"
            ][0]

        assert scored()["reason"] == "no_rubric"
        shared = call(url, "PATCH", f"/v1/rubrics/{made}", keys["red"], {"shared_with": ["blue"]})
        assert shared.json()["shared_with"] == ["blue"]
        assert scored()["reward"] == 1.0
        assert asyncio.run(pruned(driver(owner))) == {
            "assignments": 1,
            "rollouts": 1,
            "verdicts": 1,
            "texts": 1,
        }
        assert scored()["reward"] == 1.0
        assert call(url, "DELETE", "/v1/teams/red", OPERATOR).json()["tombstones"] == 1
        assert scored()["reason"] == "no_rubric"
    assert query(app, "SELECT count(*) FROM rubrics") == [(0,)]


async def pruned(url: str) -> dict[str, int]:
    database = Database(create_engine(url))
    try:
        return dict(+await every(Pruner(database, now() + timedelta(minutes=1), dry=False)))
    finally:
        await database.close()
