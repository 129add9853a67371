"""Test what runs keep: figures beyond pruning, second verdicts, repeats, cost."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from markscheme import schema
from markscheme_server import wire
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import criterion_key, prompt_key, text_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.run_blocks import BLOCK_STEPS, BlockMark
from markscheme_server.errors import NotFound
from markscheme_server.scoring import runs
from markscheme_server.scoring.judge_reports import JudgeReportService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.scoring.runs import RunService
from markscheme_server.store import runs as stored_runs
from markscheme_server.store.assignments import (
    GroupOutcome,
    GroupRef,
    ScoredRollout,
    ScoredTeacher,
)
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance.prune import Pruner
from markscheme_server.store.run_groups import StoredGroup, StoredRollout
from markscheme_server.store.runs import RunReading
from markscheme_server.store.store import Store

RED = Caller("red", frozenset({"read"}))
PROMPT = [{"role": "user", "content": "Name a colour."}]
CRITERIA = [Criterion("c1", "It is a colour.", 2), Criterion("c2", "It is one word.", 1)]
Said = tuple[str, str, float | None]


class Reader:
    """The services over a store."""

    def __init__(self, store: Store) -> None:
        histories = RunHistories(store.runs)
        self.runs = RunService(store.runs, store.budgets, histories)
        self.groups = RunGroupService(store.runs, store.run_groups, store.rubrics, histories, [])
        self.reports = JudgeReportService(
            store.judge_reports, store.runs, store.rubrics, self.groups, {}
        )


async def make_rubric(store: Store) -> Rubric:
    return await store.rubric_versions.save(
        team="red",
        prompt=PROMPT,
        criteria=CRITERIA,
        origin="imported",
        provenance={},
        actor=Actor("red"),
    )


async def score(store: Store, rubric: Rubric, step: int, said: Sequence[Said]) -> str:
    """Store a scored group of (text, verdict string, reward); return its id."""
    made = await store.assignments.assign(
        GroupRef("red", "run", step, f"g{step}", prompt_key(PROMPT)),
        prompt=None,
        rubric_id=rubric.id,
        origin="reused",
        reuse="if_fresh",
        verify="rollout",
        distinct=len(said),
    )
    rollouts = [
        ScoredRollout(
            f"r{i}", text, False, reward, None if reward is not None else "timeout", verdicts, 1
        )
        for i, (text, verdicts, reward) in enumerate(said)
    ]
    await store.assignments.finish(
        "red",
        made.id,
        GroupOutcome(
            rollouts,
            distinct=sum(r.reward is not None for r in rollouts),
            teachers=[ScoredTeacher(text_key("blue"), 1.0, "11")],
            criteria=len(CRITERIA),
            judge="judge",
            run_id="run",
        ),
    )
    return made.id


async def answers(reader: Reader) -> list[schema.Wire]:
    return [
        await reader.runs.run(RED, "run"),
        await reader.runs.steps(RED, "run"),
        await reader.runs.criteria(RED, "run"),
        await reader.runs.findings(RED, "run"),
    ]


def rewards(answered: Sequence[schema.Wire]) -> list[float | None]:
    steps = answered[1]
    assert isinstance(steps, schema.StepList)
    return [each.reward for each in steps.data]


async def prune(store: Store) -> None:
    async for _ in Pruner(store.database, now() + timedelta(seconds=1), dry=False).run():
        pass


async def test_a_run_keeps_its_figures_when_its_groups_are_pruned(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in range(4):
        await score(store, rubric, step, [("red", "11", 1.0), ("red, blue", "1?", None)])
    before = await answers(reader)
    await prune(store)
    for each in (reader, Reader(store)):  # one that has read them before, and one that has not
        after = await answers(each)
        assert isinstance(after[0], schema.RunDetail)
        assert after[0].pruned_until == 4
        assert [
            after[0].model_copy(update={"pruned_until": None}),
            *after[1:],
        ] == before
        assert (await each.groups.groups(RED, "run", schema.GroupFilter())).data == []
    await score(store, rubric, 9, [("green", "11", 1.0)])
    detail = await reader.runs.run(RED, "run")
    assert (detail.groups, detail.last_step, detail.pruned_until) == (5, 9, 4)


async def test_figures_are_new_with_each_group(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in range(3):
        await score(store, rubric, step, [("red", "11", 1.0), ("a b", "00", 0.0)])
        assert await answers(reader) == await answers(Reader(store))
        assert (await reader.runs.run(RED, "run")).groups == step + 1
    # The first step is sent again.
    await score(store, rubric, 0, [("red", "11", 1.0), ("a b", "10", 0.5)])
    assert (await reader.runs.steps(RED, "run")).data[0].reward == 0.75


async def test_another_process_reads_finished_steps_as_they_are_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in (0, BLOCK_STEPS, 2 * BLOCK_STEPS):
        await score(store, rubric, step, [("red", "11", 1.0), ("a b", "0?", None)])
    first = await answers(reader)
    read: list[set[int]] = []
    reading = store.runs.read

    async def noted(team: str, run_id: str, known: Mapping[int, BlockMark]) -> RunReading:
        found = await reading(team, run_id, known)
        read.append(set(found.unread))
        return found

    monkeypatch.setattr(store.runs, "read", noted)
    assert await answers(Reader(store)) == first
    # A step is sent again: what is stored of its block counts no more.
    await score(store, rubric, 0, [("red", "11", 1.0), ("a b", "10", 0.5)])
    changed = await answers(Reader(store))
    assert isinstance(changed[1], schema.StepList)
    assert changed[1].data[0].reward == 0.75
    assert await answers(Reader(store)) == changed
    assert await answers(reader) == changed
    await prune(store)
    pruned = await answers(Reader(store))
    assert await answers(Reader(store)) == pruned
    assert await answers(reader) == pruned
    listed = await Reader(store).groups.groups(RED, "run", schema.GroupFilter())
    assert (pruned[1:], listed.data) == (changed[1:], [])
    last = 2 * BLOCK_STEPS
    every = {0, BLOCK_STEPS, last}
    assert read == [{last}, {0, last}, {last}, set(), every, {last}, {last}, {last}]


async def test_a_group_that_is_stored_late_is_in_the_figures(
    store: Store, database_url: str
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in (0, 1, BLOCK_STEPS):
        await score(store, rubric, step, [("red", "11", 1.0)])
    slow = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    write, begun, go_on = slow.database.write, asyncio.Event(), asyncio.Event()

    async def write_late(*args: Any, **options: Any) -> Sequence[Any]:
        if "outcomes" in args[2]:
            begun.set()
            await go_on.wait()
        return await write(*args, **options)

    slow.database.write = write_late  # type: ignore[method-assign]
    # The first group is scored again before the second, and stored after it.
    first = asyncio.create_task(score(slow, rubric, 0, [("red", "10", 0.5)]))
    await begun.wait()
    await score(store, rubric, 1, [("red", "00", 0.0)])
    assert rewards(await answers(reader)) == rewards(await answers(Reader(store))) == [1, 0, 1]
    go_on.set()
    await first
    assert rewards(await answers(reader)) == rewards(await answers(Reader(store))) == [0.5, 0, 1]
    await slow.close()


async def test_metrics_are_in_the_figures_of_who_read_the_run_while_they_were_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    await score(store, rubric, 0, [("red", "11", 1.0)])
    put = store.runs.put

    async def put_and_read(*args: Any) -> None:
        await put(*args)
        await answers(reader)

    monkeypatch.setattr(store.runs, "put", put_and_read)
    await store.runs.add_records(
        Actor("red"), "run", {0: {"loss": 0.5}}, most=10, most_characters=99
    )
    assert (await reader.runs.steps(RED, "run")).data[0].metrics == {"loss": 0.5}


async def test_a_run_is_read_though_its_blocks_cannot_be_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric = await make_rubric(store)
    for step in (0, BLOCK_STEPS):
        await score(store, rubric, step, [("red", "11", 1.0)])

    async def full(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("disk full"))

    monkeypatch.setattr(store.runs, "save_blocks", full)
    assert (await Reader(store).runs.run(RED, "run")).groups == 2


async def test_pages_of_groups_follow_each_other(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in range(0, 3 * BLOCK_STEPS, 10):
        rewards = [("red", "11", 1.0), ("blue", "10", step / 100)]
        await score(store, rubric, step, rewards)
    for sort in ("newest", "spread", "length"):
        wanted = schema.GroupFilter(sort=sort)
        every = (await reader.groups.groups(RED, "run", wanted)).data
        assert len(every) == 8
        if sort == "spread":
            assert [each.step for each in every] == list(range(0, 80, 10))
        else:
            assert [each.step for each in every] == list(range(70, -10, -10))
        paged: list[schema.RunGroup] = []
        more = True
        while more:
            after = paged[-1].id if paged else None
            page = await reader.groups.groups(RED, "run", wanted, limit=3, after=after)
            paged, more = paged + page.data, page.has_more
        assert paged == every


async def test_a_group_that_is_pruned_while_it_is_read_is_not_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    id_ = await score(store, rubric, 0, [("red", "11", 1.0)])
    find = store.run_groups.find

    async def find_and_prune(team: str, ids: Sequence[str]) -> list[StoredGroup]:
        found = await find(team, ids)
        await prune(store)
        return found

    monkeypatch.setattr(store.run_groups, "find", find_and_prune)
    with pytest.raises(NotFound, match="pruning removes old ones"):
        await reader.groups.group(RED, id_)


async def test_a_group_is_made_beside_the_event_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    id_ = await score(store, rubric, 0, [("red", "11", 1.0)])
    make, made = wire.from_criteria, []

    def make_without_loop(criteria: Sequence[Criterion]) -> list[schema.Criterion]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        made.append(criteria)
        return make(criteria)

    monkeypatch.setattr(wire, "from_criteria", make_without_loop)
    assert (await reader.groups.group(RED, id_)).mean == 1.0
    assert made


async def test_groups_that_are_pruned_while_they_are_listed_are_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    await score(store, rubric, 0, [("red", "11", 1.0)])
    rollouts = store.run_groups.rollouts
    found = asyncio.Event()
    find = store.run_groups.find

    async def find_first(team: str, ids: Sequence[str]) -> list[StoredGroup]:
        groups = await find(team, ids)
        await prune(store)
        found.set()
        return groups

    async def rollouts_then(team: str, ids: Sequence[str]) -> dict[str, list[StoredRollout]]:
        await found.wait()
        return await rollouts(team, ids)

    monkeypatch.setattr(store.run_groups, "find", find_first)
    monkeypatch.setattr(store.run_groups, "rollouts", rollouts_then)
    assert (await reader.groups.groups(RED, "run", schema.GroupFilter())).data == []


async def test_a_group_counts_from_its_runs_first_step_though_that_was_pruned(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    assert await store.runs.first_step("red", "run") is None
    await score(store, rubric, 3, [("red", "11", 1.0)])
    await prune(store)
    group = await score(store, rubric, 7, [("red", "11", 1.0)])
    assert (await reader.groups.group(RED, group)).first_step == 3
    assert await store.runs.first_step("blue", "run") is None


async def test_a_rubrics_health_is_that_of_all_its_groups_pruned_ones_included(
    store: Store,
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in range(25):
        said = [("red", "10", 0.5), ("blue", "10", 0.5), ("?", "??", None), ("green", "1-", 1.0)]
        await score(store, rubric, step, said[: 3 + step % 2])
    found = await reader.reports.health(RED, rubric.id)
    assert (found.groups, found.runs) == (25, ["run"])
    first, second = found.criteria
    assert first.rollouts == schema.CriterionShare(met=62, judged=62, unknown=25)
    assert second.rollouts == schema.CriterionShare(met=0, judged=50, unknown=25)
    assert first.teacher == schema.CriterionShare(met=25, judged=25, unknown=0)
    await prune(store)
    assert await reader.reports.health(RED, rubric.id) == found


async def test_a_rubrics_health_is_that_of_its_newest_groups_if_there_are_very_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric = await make_rubric(store)
    for step in range(6):
        await score(store, rubric, step, [("red", "10" if step < 3 else "01", 0.5)])
        if step == 1:
            await prune(store)
    every = await store.runs.life_of_rubric("red", rubric.id)
    assert [each.verdicts for each in every.groups()] == ["10"] * 3 + ["01"] * 3
    size = len(every._figures) // 6
    for most, kept in ((size // 2, 1), (size * 5 // 2, 3), (size * 9 // 2, 5), (size * 10, 6)):
        monkeypatch.setattr(stored_runs, "MAX_LIFE", most)
        life = await stored_runs.RunStore(store.database).life_of_rubric("red", rubric.id)
        assert life.groups() == every.groups()[-kept:]
        assert life.runs == ["run"]


async def test_another_teams_groups_are_in_no_health(store: Store) -> None:
    rubric = await make_rubric(store)
    await score(store, rubric, 0, [("red", "11", 1.0)])
    life = await store.runs.life_of_rubric("blue", rubric.id)
    assert (list(life.runs), life.groups()) == ([], [])


async def test_a_second_judge_is_shown_beside_the_first(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    group = await score(store, rubric, 0, [("red", "11", 1.0), ("blue", "10", 0.5)])
    assert (await reader.runs.run(RED, "run")).second_judge == 0
    said = {"assignment_id": group, "step": 0, "judge": "other", "first_judge": "judge"}
    await store.runs.save_second(
        "red",
        "run",
        [
            said
            | {
                "rollout_id": "r0",
                "first_reward": 1.0,
                "first_verdicts": "11",
                "reward": 0.5,
                "verdicts": "10",
            },
            said
            | {
                "rollout_id": "r1",
                "first_reward": 0.5,
                "first_verdicts": "10",
                "reward": None,
                "verdicts": "1?",
            },
        ],
    )
    detail = await reader.runs.run(RED, "run")
    assert (detail.second_judge, detail.second_judge_now) == (1, 0.5)
    (listed,) = (
        await reader.groups.groups(RED, "run", schema.GroupFilter(sort="disagreement"))
    ).data
    shown = await reader.groups.group(RED, listed.id)
    assert shown.second_judge == "other"
    assert [[v.second_judge_met for v in r.verdicts] for r in shown.rollouts] == [
        [True, False],
        [True, None],
    ]
    report = await reader.reports.judges(RED)
    (both,) = report.data[0].agreement
    assert (report.data[0].judge, both.second_judge, both.verdicts) == ("judge", "other", 3)
    assert both.agreement == pytest.approx(2 / 3)
    assert [each.id for each in report.disagreements] == [group]


async def test_repeats_are_counted_where_both_verdicts_are_known(store: Store) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    await score(store, rubric, 0, [("red", "11", 1.0)])
    key = criterion_key(CRITERIA[0])
    await store.runs.save_repeats(
        "red",
        "run",
        [
            {
                "criterion_key": key,
                "verdict_key": f"v{i}",
                "judge": "judge",
                "met_before": True,
                "met_now": met,
            }
            for i, met in enumerate([True, True, False, None])
        ],
    )
    (found,) = (await store.runs.read("red", "run", {})).repeats
    assert (found.criterion_key, found.asked, found.flipped) == (key, 3, 1)
    repeats = (await reader.reports.judges(RED)).data[0].repeats
    assert repeats is not None
    assert (repeats.verdicts, repeats.flipped, repeats.share) == (3, 1, pytest.approx(1 / 3))


async def test_a_rollout_has_its_verdicts_in_its_row(store: Store) -> None:
    group = await score(store, await make_rubric(store), 0, [("red", "1-", 1.0)])
    (rollout,) = (await store.run_groups.rollouts("red", [group]))[group]
    assert (rollout.verdicts, rollout.words) == ("1-", 1)
    assert await store.run_groups.rollouts("blue", [group]) == {}
    assert await store.run_groups.find("blue", [group]) == []


async def test_a_list_shows_that_a_run_fell_silent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, reader = await make_rubric(store), Reader(store)
    for step in range(2):
        await score(store, rubric, step, [("red", "11", 1.0)])
    listed = await reader.runs.runs(RED, limit=1, after=None)
    assert [run.state for run in listed.data] == ["running"]
    monkeypatch.setattr(runs, "now", lambda: now() + timedelta(days=1))
    listed = await reader.runs.runs(RED, limit=1, after=None)
    assert [run.state for run in listed.data] == ["silent"]
