"""Pruning on both databases: what goes, what stays, and that writers beside it lose nothing."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from markscheme.vocabulary import ReplayState
from markscheme_server.config import Settings
from markscheme_server.domain.hashing import prompt_key, text_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.usage import JudgeUsage, to_nano
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store import tables
from markscheme_server.store.assignments import GroupOutcome, GroupRef, ScoredRollout
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import HoldRequest
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.engine.ids import now
from markscheme_server.store.gathering import Arrival
from markscheme_server.store.idempotency import RequestKey, Started
from markscheme_server.store.ledger import CallDescription, JudgeCall
from markscheme_server.store.maintenance import batch_delete
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.maintenance.prune import Pruner
from markscheme_server.store.store import Store
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict
from server.store.maintenance.pruning import every

OLD = timedelta(days=100)
AGE = timedelta(days=90)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    made = Store(
        Settings(_env_file=None, database_url=database_url, judge="builtin").sqlalchemy_url,
        claim_lease_s=600,
    )
    yield made
    await made.drain()
    await made.close()


def prompt(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": name}]


async def rubric(store: Store, name: str) -> Rubric:
    return await store.rubric_versions.save(
        team="t",
        prompt=prompt(name),
        criteria=[Criterion("c1", "words", 1)],
        origin="induced",
        provenance={},
        actor=Actor("t"),
        induction=text_key(name),
    )


async def group(
    store: Store, name: str, texts: Sequence[str], under: Rubric, *, group_id: str = "g"
) -> str:
    """Score a group whose prompt is ``name``; return the assignment's id."""
    place = GroupRef("t", "run", 1, group_id, prompt_key(prompt(name)))
    made = await store.assignments.assign(
        place,
        prompt=prompt(name),
        rubric_id=under.id,
        origin="induced",
        reuse="if_fresh",
        verify="rollout",
    )
    await store.assignments.finish(
        "t",
        made.id,
        GroupOutcome(
            [ScoredRollout(f"r{i}", text, False, 0.5, None) for i, text in enumerate(texts)]
        ),
    )
    return made.id


async def verdict(store: Store, name: str) -> None:
    key = text_key(name)
    await store.verdicts.save(
        JudgeReply(
            "t",
            [StoredVerdict(key, "p", "c", key, "judge", StoredDecision(True, None, None))],
            JudgeCall(
                CallDescription("t", None, "verifier", "judge", ("c",)), JudgeUsage(1, 10, 5)
            ),
        )
    )


async def answered(store: Store, key: str, *, finished: bool = True) -> None:
    address = RequestKey("t", "/r", key)
    begun = await store.idempotency.begin(address, "f" * 64)
    assert isinstance(begun, Started)
    if finished:
        await store.idempotency.finish(address, begun.owner, status=200, body="{}")


async def replayed(store: Store, state: ReplayState) -> None:
    """Store a replay of two groups that has made a call."""
    made = await store.replays.create("t", "run", {}, None, ["asg_1", "asg_2"])
    await store.replays.change(made, state)
    about = CallDescription("t", None, "replay", "judge", ("c",), replay_id=made.id)
    await store.ledger.record(JudgeCall(about, JudgeUsage(1, 10, 5)))


async def gathered(store: Store, key: str, *texts: str) -> None:
    """Store a group whose rollouts came one request each."""
    for number, text in enumerate(texts):
        await store.gathering.arrive(
            Arrival("t", text_key(key), "f" * 64, 8, 60.0, f"r{number}", text, False)
        )


async def age(store: Store, by: timedelta = OLD) -> None:
    """Everything that is stored now was stored this long ago."""
    async with store.database.writing(ALL_TEAMS) as connection:
        for table in tables.metadata.sorted_tables:
            if "created_at" in table.c and table is not tables.audit_entries:
                await connection.execute(sa.update(table).values(created_at=now() - by))
        for table in (tables.claims, tables.holds):
            await connection.execute(
                sa.update(table).values(expires_at=table.c.expires_at - by.total_seconds())
            )


async def contents(
    store: Store, counted: Sequence[sa.Table] = tables.metadata.sorted_tables
) -> dict[str, int]:
    async with store.database.reading(ALL_TEAMS) as connection:
        return {
            table.name: (
                await connection.execute(sa.select(sa.func.count()).select_from(table))
            ).scalar_one()
            for table in counted
        }


async def run(store: Store, *, dry: bool = False) -> Counter[str]:
    pruner = Pruner(store.database, now() - AGE, dry=dry)
    removed: Counter[str] = Counter()
    scanned, total = 0, await pruner.total()
    async for batch in pruner.run():
        removed.update(batch.deleted)
        scanned += batch.scanned
    assert scanned == total
    return removed


async def old_and_new(store: Store) -> None:
    """Store an old and a new run that share a prompt, rubric and text; a teacher; other rows."""
    shared = await rubric(store, "shared")
    for i in range(40):
        await group(store, f"old-{i}", [f"old {i} a", f"old {i} b", "said again"], shared)
    await group(store, "shared", ["old", "a teacher's words"], shared)
    for i in range(30):
        await verdict(store, f"old-{i}")
    await store.verdicts.save(
        JudgeReply(
            "t",
            (),
            JudgeCall(
                CallDescription("t", None, "rubricator", "judge"), JudgeUsage(3), "unavailable"
            ),
        )
    )
    await store.teachers.save("t", prompt("taught"), ["a teacher's words"])
    await replayed(store, "finished")
    await replayed(store, "paused")
    await answered(store, "old")
    await answered(store, "left running", finished=False)
    await store.claims.acquire("k" * 64)
    await store.budgets.hold(HoldRequest("hold_old", "t", None, to_nano(1.0)))
    await gathered(store, "old", "gathered", "said again", "old 1 a")
    await age(store)
    await gathered(store, "new", "gathered anew")
    await group(store, "new", ["said again", "new"], shared)
    await verdict(store, "new")
    await answered(store, "new")
    await answered(store, "at work", finished=False)
    await store.claims.acquire("l" * 64)
    await store.budgets.hold(HoldRequest("hold_new", "t", None, to_nano(1.0)))


GONE = {
    "assignments": 41,
    "rollouts": 122,
    "gathered_groups": 1,
    "gathered_rollouts": 3,
    "replays": 1,
    "replay_groups": 2,
    "verdicts": 30,
    "judge_calls": 32,
    "idempotency_keys": 1,
    "claims": 1,
    "holds": 1,
    "texts": 82,
    "prompts": 40,
}
"""``idempotency_keys``: the one left running is old, but its lease was not set back with it.
``judge_calls``: not that of the replay that is not over.
"""


async def test_old_runs_go_and_rubrics_and_teachers_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_delete, "BATCH_SIZE", 7)
    await old_and_new(store)
    before = await contents(store)
    assert await run(store, dry=True) == GONE
    assert await contents(store) == before
    assert await run(store) == GONE
    after = await contents(store)
    assert {name: before[name] - after[name] for name in before} == dict.fromkeys(
        before, 0
    ) | GONE | {
        "past_usage": -3,  # the verifier's calls, the rubricator's and the replay's, all of one day
        "past_groups": -GONE["assignments"],
    }
    assert [
        kept.response for kept in await store.teachers.find("t", prompt_key(prompt("taught")))
    ] == ["a teacher's words"]
    assert await store.rubrics.find_induced("t", text_key("shared")) is not None
    assert set(await store.verdicts.find("t", [text_key("old-1"), text_key("new")])) == {
        text_key("new")
    }
    assert await run(store) == dict.fromkeys(GONE, 0)


async def test_a_running_request_loses_its_row_only_with_its_lease(store: Store) -> None:
    await answered(store, "stuck", finished=False)
    await age(store)
    assert (await run(store))["idempotency_keys"] == 0
    async with store.database.writing(ALL_TEAMS) as connection:
        await connection.execute(sa.update(tables.idempotency_keys).values(expires_at=1.0))
    assert (await run(store))["idempotency_keys"] == 1


async def test_a_step_sent_again_after_pruning_is_a_new_one(store: Store) -> None:
    made = await rubric(store, "again")
    first = await group(store, "again", ["x"], made)
    await age(store)
    await run(store)
    second = await group(store, "again", ["x"], made)
    assert second != first
    assert (await contents(store))["rollouts"] == 1


Books = dict[tuple[Any, ...], dict[str, float]]


async def books(store: Store) -> Books:
    """Sum the calls, spending and savings by team, day, run, rubric, role and judge.

    The sums cover the ledger and the tables beside it.
    """
    summed: Books = {}
    async with store.database.reading(ALL_TEAMS) as connection:
        for table, figures in (
            (tables.judge_calls, spent),
            (tables.assignments, saved),
            (tables.past_usage, lambda row: {name: row[name] for name in FIGURES}),
        ):
            for row in (await connection.execute(sa.select(table))).mappings():
                day = row["day"] if "day" in row else row["created_at"].strftime("%Y-%m-%d")
                place = (
                    row["team"],
                    day,
                    row["run_id"],
                    row["rubric_id"],
                    row.get("role"),
                    row.get("judge"),
                )
                there = summed.setdefault(place, dict.fromkeys(FIGURES, 0.0))
                for name, value in figures(row).items():
                    there[name] += value
    return {
        place: {name: pytest.approx(value) for name, value in there.items()}
        for place, there in summed.items()
        if any(there.values())
    }


FIGURES = (
    "calls",
    "failed_calls",
    "unpriced_calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cached_verdicts",
    "cost_usd",
    "saved_usd",
    "settled_usd",
)


def spent(call: Any) -> dict[str, float]:
    return {name: call[name] for name in FIGURES[3:6]} | {
        "calls": call["calls"],
        "failed_calls": call["failure"] is not None,
        "cost_usd": call["cost_usd"] or 0,
        "unpriced_calls": call["unpriced_calls"],
        "settled_usd": call["settled_usd"],
    }


def saved(group: Any) -> dict[str, float]:
    return {name: group[name] or 0 for name in ("cached_verdicts", "saved_usd")}


async def fill_books(store: Store) -> None:
    """Store calls and groups of 40 days, two runs and two teams.

    Calls are cheap, expensive or of unknown price; some failed.
    """
    made = await rubric(store, "p")
    for i in range(40):
        team, run_id, cost = (
            "tu"[i % 2],
            f"run {i % 3}" if i % 5 else None,
            i / 100 if i % 4 else None,
        )
        unknown = (
            {"cost": to_nano(cost)} if cost is not None else {"unpriced_calls": 1, "unknown": i}
        )
        usage = JudgeUsage(1 + i % 2, 100 + i, 10 + i, cached_tokens=i, **unknown)
        about = CallDescription(
            team,
            run_id,
            "verifier" if i % 7 else "teacher",
            f"judge {i % 2}",
            ("c",),
            made.id if i % 3 else None,
        )
        call = JudgeCall(about, usage, "timeout" if i % 6 == 0 else None)
        key = text_key(f"{i}")
        await store.verdicts.save(
            JudgeReply(
                team,
                [StoredVerdict(key, "p", "c", key, "judge", StoredDecision(True, None, None))]
                if i % 8
                else (),
                call,
            )
        )
        group_id = await group(store, "p", [f"text {i}"], made, group_id=f"g{i}")
        if i % 10:
            await store.assignments.finish(
                "t", group_id, GroupOutcome([], cached_verdicts=i, saved_usd=i / 50)
            )
    async with store.database.writing(ALL_TEAMS) as connection:
        await connection.execute(tables.teams.insert().values(name="u", created_at=now()))
        for table in (tables.judge_calls, tables.verdicts, tables.assignments):
            key_column = table.primary_key.columns[0]
            keys = (
                (await connection.execute(sa.select(key_column).order_by(table.c.created_at)))
                .scalars()
                .all()
            )
            for i, key in enumerate(keys):
                await connection.execute(
                    sa.update(table)
                    .where(key_column == key)
                    .values(created_at=now() - timedelta(days=80 + i))
                )
        # A verdict that is younger than its call keeps it.
        await connection.execute(
            sa.update(tables.verdicts)
            .where(tables.verdicts.c.key == text_key("39"))
            .values(created_at=now())
        )


async def test_pruning_keeps_the_books_at_any_age(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_delete, "BATCH_SIZE", 7)
    await fill_books(store)
    before, rows = await books(store), await contents(store)
    spent_before = await store.budgets.put(
        "u", None, hard_usd=9.0, soft_usd=None, window="total", actor=Actor("u")
    )
    for days in (200, 100, 90, 90, 1, 1):
        dry = Pruner(store.database, now() - timedelta(days=days), dry=True)
        counted = [batch async for batch in dry.run()]
        past = await contents(store, [tables.past_usage])
        pruners = [
            Pruner(store.database, now() - timedelta(days=days), dry=False) for _ in range(2)
        ]
        removed = await asyncio.gather(*(every(pruner) for pruner in pruners))
        assert await books(store) == before
        gone = sum(each["judge_calls"] for each in removed)
        assert gone == sum(batch.deleted.get("judge_calls", 0) for batch in counted)
        more = await contents(store, [tables.past_usage])
        assert (more["past_usage"] > past["past_usage"]) == (gone > 0)
    left = await contents(store)
    assert (left["judge_calls"], left["assignments"]) == (1, 0)
    assert rows["judge_calls"] == rows["assignments"] == 40
    again = await store.budgets.put(
        "u", None, hard_usd=9.0, soft_usd=None, window="total", actor=Actor("u")
    )
    assert again.spent_usd == pytest.approx(spent_before.spent_usd)
    assert again.spent_usd > 1


async def test_writers_beside_it_find_what_they_refer_to(store: Store) -> None:
    """New groups keep saying what old ones said, while that is being removed by two at once."""
    made = await rubric(store, "shared")
    for i in range(60):
        await group(store, "shared", [f"said {i}", f"said {i} twice"], made, group_id=f"old-{i}")
    await age(store)
    stopped = False

    async def write(number: int) -> int:
        turn = 0
        while not stopped:
            said = (turn * 7 + number) % 60
            await group(
                store,
                "shared",
                [f"said {said}", f"said {said} twice"],
                made,
                group_id=f"new-{number}-{turn}",
            )
            turn += 1
        return turn

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    await asyncio.sleep(0.05)
    removed = await asyncio.gather(
        *(every(Pruner(store.database, now() - AGE, dry=False)) for _ in range(2))
    )
    stopped = True
    turns = await asyncio.gather(*writers)
    assert sum(r["assignments"] for r in removed) == 60
    left = await contents(store)
    assert left["rollouts"] == 2 * left["assignments"] == 2 * sum(turns)


async def test_a_text_that_is_being_referred_to_again_is_waited_for(store: Store) -> None:
    """A writer that passes by an old text finds it still there when it comes to refer to it."""
    made = await rubric(store, "p")
    await group(store, "p", ["said"], made, group_id="old")
    await age(store)
    new = await store.assignments.assign(
        GroupRef("t", "run", 2, "g", made.prompt_key),
        prompt=prompt("p"),
        rubric_id=made.id,
        origin="reused",
        reuse="if_fresh",
        verify="rollout",
    )
    async with store.database.writing(ALL_TEAMS) as connection:
        await store.database.insert_new(
            connection,
            tables.texts,
            [{"key": text_key("said"), "text": "said", "created_at": now()}],
        )
        pruning_it = asyncio.create_task(run(store))
        await asyncio.sleep(0.3)
        await connection.execute(
            tables.rollouts.insert().values(
                assignment_id=new.id, rollout_id="r0", text_key=text_key("said"), truncated=False
            )
        )
    assert (await pruning_it)["texts"] == 0
    assert (await contents(store))["texts"] == 1


async def test_a_sqlite_file_shrinks_when_asked(tmp_path: Any) -> None:
    file = tmp_path / "m.db"
    url = f"sqlite+aiosqlite:///{file}"
    await prepare(url)
    store = Store(url)
    made = await rubric(store, "p")
    for i in range(20):
        await group(store, f"old-{i}", [f"{i} " + "words " * 20_000], made)
    await age(store)
    await run(store)
    pruner = Pruner(store.database, now() - AGE, dry=False)
    large = file.stat().st_size
    await pruner.vacuum()
    assert file.stat().st_size < large / 4
    assert (await contents(store))["rubrics"] == 1
    await store.close()
