"""Test erasing a team: none of its rows is left, others' are unchanged, and a kill is repaired."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from markscheme_server.accounts import erasure
from markscheme_server.accounts.erasure import ErasureReport, erase_team
from markscheme_server.config import Settings
from markscheme_server.domain.hashing import prompt_key, text_key
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.errors import Conflict, NotFound, Unauthorised
from markscheme_server.store.assignments import GroupRef
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.ledger import CallDescription, JudgeCall
from markscheme_server.store.maintenance import batch_delete, team_deletion
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store
from markscheme_server.store.tables import (
    audit_entries,
    metadata,
    past_groups,
    past_usage,
    prompts,
    rubrics,
)
from markscheme_server.store.teams import UnknownTeam
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict
from server.store.three_teams import (
    COMMON,
    TEAMS,
    fill,
    identity,
    run_id,
    word,
)

Dump = dict[str, list[dict[str, Any]]]


@pytest.fixture
async def store(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(erasure, "SETTLE_S", 0)
    made = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    yield made
    await made.drain()
    await made.close()


async def dump(store: Store) -> Dump:
    """Every row of every table that there is, the search index's too."""
    async with store.database.reading(ALL_TEAMS) as connection:
        names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
        assert set(metadata.tables) <= set(names)
        found: Dump = {
            table.name: [
                dict(row) for row in (await connection.execute(sa.select(table))).mappings()
            ]
            for table in metadata.sorted_tables
        }
        for name in {"rubric_words", "rubric_words_content"}.intersection(names):
            rows = await connection.execute(sa.text(f"SELECT * FROM {name}"))  # noqa: S608
            found[name] = [dict(row) for row in rows.mappings()]
    return found


def of_red(row: Mapping[str, Any], ids: set[str]) -> bool:
    """Whether a row says that it is red's, or something of red's, or refers to it."""
    return (
        "red" in (row.get("team"), row.get("owner"), row.get("name"))
        or any(mark in repr(row) for mark in (word("red"), run_id("red")))
        or not ids.isdisjoint(str(value) for value in row.values())
    )


def ids_of_red(found: Dump) -> set[str]:
    return {
        str(row["id"])
        for name in ("rubrics", "assignments", "gathered_groups")
        for row in found[name]
        if row["team"] == "red"
    }


def check(before: Dump, after: Dump, known: dict[str, Any]) -> None:
    """Check that red has only declared rows left and that the others' rows are unchanged."""
    ids = ids_of_red(before)
    for name, rows in before.items():
        missing = [row for row in rows if row not in after[name]]
        assert all(of_red(row, ids) for row in missing), name
    left = {
        name: [row for row in rows if of_red(row, ids)]
        for name, rows in after.items()
        if name != audit_entries.name
    }
    (team,) = left.pop("teams")
    assert team["erased_at"] is not None
    (key,) = left.pop("api_keys")
    assert key["revoked_at"] is not None
    assert key["label"] is None
    stones = {row["id"]: row for row in left.pop("rubrics") if row["team"] == "red"}
    assert stones.keys() == known["tombstones"]
    for row in stones.values():
        assert [
            row[c]
            for c in (
                "parent_id",
                "criteria",
                "tags",
                "provenance",
                "visibility",
                "cost_usd",
                "words",
            )
        ] == [None, [], [], {}, "private", None, ""]
        assert row["retired_at"] is not None
        (prompt,) = (p for p in after["prompts"] if p["key"] == row["prompt_key"])
        assert prompt["messages"] == []
    # What refers to a tombstone is the other teams' own.
    for table, rows in left.items():
        for row in rows:
            assert table in ("assignments", "rubrics", "rubric_words", "rubric_words_content"), (
                table,
                row,
            )
            assert known["tombstones"] & {str(value) for value in row.values()}, (table, row)
            assert word("red") not in repr(row)
    new = {
        table: [row for row in rows if row not in before[table]] for table, rows in after.items()
    }
    assert {table for table, rows in new.items() if rows} <= {
        "teams",
        "api_keys",
        "rubrics",
        "prompts",
        "audit_entries",
        "rubric_words",
        "rubric_words_content",
    }
    assert {row["id"] for row in new["rubrics"]} == known["tombstones"]
    assert {row["action"] for row in new["audit_entries"]} == {"team.erasing", "team.erased"}


async def test_nothing_of_the_team_is_left_and_the_others_keep_all(store: Store) -> None:
    known = await fill(store)
    before = await dump(store)
    # Red has rows in every table except these: give it a row in any new table.
    ids = ids_of_red(before)
    assert {name for name, rows in before.items() if not any(of_red(row, ids) for row in rows)} == {
        "claims",
        "secrets",
        "endpoint_probes",
    }
    done = await erase_team(store, "red", Actor("default", "mk_operator"))
    check(before, await dump(store), known)
    assert done.tombstones == 2
    assert done.removed["rubrics"] == 2
    assert done.removed["texts"] == 4
    assert done.removed["idempotency_keys"] == 2, (
        "its own, and blue's that was given a rubric of red's"
    )
    assert done.removed["gathered_groups"] == done.removed["gathered_rollouts"] == 2, "likewise"
    (entry,) = [
        row for row in (await dump(store))["audit_entries"] if row["action"] == "team.erased"
    ]
    assert (entry["team"], entry["key"], entry["subject"]) == ("default", "mk_operator", "team:red")
    assert entry["detail"] == {name: rows for name, rows in done.removed.items() if rows} | {
        "tombstones": 2
    }


async def test_killed_after_any_transaction_it_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is killed one transaction later than the one before."""
    for module, name, size in (
        (batch_delete, "BATCH_SIZE", 2),
        (team_deletion, "RUBRICS_PER_BATCH", 1),
    ):
        monkeypatch.setattr(module, name, size)
    known = await fill(store)
    before = await dump(store)

    async def erase(transactions: int) -> ErasureReport:
        left = transactions

        def count(_batch: batch_delete.Batch) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise asyncio.CancelledError

        return await erase_team(store, "red", Actor(), on_batch=count)

    kills = 0
    while True:
        try:
            await erase(kills + 1)
            break
        except asyncio.CancelledError:
            kills += 1
    assert kills > 15
    check(before, await dump(store), known)


async def test_what_is_brought_late_is_refused_and_its_neighbours_are_kept(store: Store) -> None:
    """A request that still runs writes in batches with those of other teams."""
    known = await fill(store)
    before = await dump(store)
    await erase_team(store, "red", Actor())
    late = [
        asyncio.ensure_future(
            store.verdicts.save(
                JudgeReply(
                    team,
                    [
                        StoredVerdict(
                            text_key(f"late {team}"),
                            "p",
                            "c",
                            "r",
                            "judge",
                            StoredDecision(True, None, None),
                        )
                    ],
                    JudgeCall(
                        CallDescription(team, None, "verifier", "judge", ("c",)),
                        JudgeUsage(1, 1, 1),
                    ),
                )
            )
        )
        for team in ("blue", "red", "green")
    ]
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert [isinstance(outcome, IntegrityError) for outcome in outcomes] == [False, True, False]
    # Any row of the team, in any table that has such a column; it refers to what is still there.
    fork: Rubric = known["fork"]
    there = {
        "prompt_key": fork.prompt_key,
        "rubric_id": fork.id,
        "text_key": text_key("said by all"),
        "parent_id": None,
        "call_id": None,
        "replay_id": f"replay {word('blue')}",
        "number": 1,
    }
    for table in metadata.sorted_tables:
        if "team" not in table.c or table in (audit_entries, past_usage, past_groups):
            continue
        whose = "owner" if table.name == "shares" else "team"
        row = next(row for row in before[table.name] if row[whose] == "red")
        changed = {name: value for name, value in there.items() if name in table.c}
        # What must be one of its kind is new: some of the team's rubrics are still there by id.
        for name in ("prefix", "digest", *(["id"] if table.name == "rubrics" else [])):
            if name in table.c:
                changed[name] = "another"
        with pytest.raises(IntegrityError, match="this team was erased"):
            async with store.database.writing(ALL_TEAMS) as connection:
                await connection.execute(table.insert().values(row | changed))


async def test_the_name_is_never_anothers_and_nothing_can_be_done_with_it(store: Store) -> None:
    known = await fill(store)
    secret, key = await identity(store).create_key("red", ["admin"], actor=Actor())
    used: Rubric = known["used"]
    assert await store.rubrics.find("green", used.id) is not None
    await erase_team(store, "red", Actor())
    who = identity(store)
    with pytest.raises(Conflict, match="belonged to a team that was erased"):
        await who.create_team("red", actor=Actor())
    with pytest.raises(Conflict, match="already"):
        await who.create_team("blue", actor=Actor())
    with pytest.raises(NotFound):
        await who.create_key("red", ["read"], actor=Actor())
    with pytest.raises(Conflict):
        await who.rotate(key.prefix, overlap=timedelta(days=1), actor=Actor())
    with pytest.raises(Unauthorised, match="was revoked"):
        await who.authenticate(secret)
    # An erased team's name is a name like any other that is no team's: nobody is told which.
    assert (
        await store.rubrics.change(
            "blue", known["fork"].id, shared_with=["red"], actor=Actor("blue")
        )
        is not None
    )
    with pytest.raises(UnknownTeam):
        await store.budgets.put(
            "red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor()
        )
    assert "red" not in [team.name for team in await who.teams()]
    assert [await store.rubrics.find(team, used.id) for team in TEAMS[1:]] == [None, None]
    # A step that was scored by it is found as it was, and there is no rubric for it.
    place = GroupRef("blue", run_id("blue"), 7, f"group {word('blue')}", prompt_key(COMMON))
    standing = await store.assignments.find(place)
    assert standing is not None
    assert standing.rubric_id == used.id


async def test_a_tombstone_goes_when_nothing_refers_to_it_any_more(store: Store) -> None:
    known = await fill(store)
    await erase_team(store, "red", Actor())
    await erase_team(store, "blue", Actor())
    done = await erase_team(store, "red", Actor())
    assert (done.removed["rubrics"], done.removed["prompts"], done.tombstones) == (2, 2, 0)
    after = await dump(store)
    assert not [row for row in after["rubrics"] if row["team"] == "red"]
    assert known["tombstones"]


async def test_the_operators_team_and_one_that_is_not_there_are_refused(store: Store) -> None:
    before = await dump(store)
    with pytest.raises(Conflict, match="markscheme prune"):
        await erase_team(store, "default", Actor())
    with pytest.raises(NotFound):
        await erase_team(store, "nobody", Actor())
    assert await dump(store) == before


async def test_a_sqlite_file_holds_none_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "SETTLE_S", 0)
    url = f"sqlite+aiosqlite:///{tmp_path / 'm.db'}"
    await prepare(url)
    store = Store(url)
    await fill(store)

    def found() -> bool:
        return any(word("red").encode() in file.read_bytes() for file in tmp_path.iterdir())

    assert found()
    await erase_team(store, "red", Actor())
    assert not found()
    await store.close()


def test_the_tables_that_the_others_keep_their_prompts_in_are_known() -> None:
    """Texts and prompts are deleted when none of these refers to them.

    Add a new table to store/maintenance/team_deletion.py too.
    """
    assert {
        table.name
        for table in metadata.sorted_tables
        if any(
            key.column.table in (prompts, metadata.tables["texts"]) for key in table.foreign_keys
        )
    } == {"rubrics", "assignments", "teacher_responses", "rollouts", "gathered_rollouts"}
    assert {
        table.name
        for table in metadata.sorted_tables
        if any(key.column.table is rubrics for key in table.foreign_keys)
    } == {"rubrics", "shares", "inductions", "assignments", "past_groups"}
