"""The list of runs and a run's criteria and budgets, as the service computes and caches them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fakes.processes import PATIENCE_S
from markscheme.vocabulary import BudgetWindow
from markscheme_server.domain.findings.series import MIN_STEPS
from markscheme_server.domain.group_figures import GroupFigures
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_columns import RunGroup
from markscheme_server.domain.run_history import RunHistory
from markscheme_server.scoring import run_histories, runs
from markscheme_server.scoring.run_comparison import RunComparisonService
from markscheme_server.scoring.run_histories import LoadedRun, RunHistories
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import Budget
from markscheme_server.store.engine.ids import now
from markscheme_server.store.runs import RunCost, RunStore, StoredRun
from server.scoring.in_process import RED, Scoring

STEP_S = 100.0
CRITERIA = (Criterion("c1", "It is good.", 1), Criterion("c2", "It is text.", 1))


def loaded(run: StoredRun, steps: int = MIN_STEPS, unread: str | None = None) -> LoadedRun:
    """Make a run whose rollouts all meet its second criterion, and half of them the first.

    `unread`: the rubric of more groups, of whose rollouts the judge could read none.
    """
    groups = [
        RunGroup(
            f"g{step}",
            step,
            "rub_1",
            "judge",
            False,
            GroupFigures(
                at=1000.0 + STEP_S * step,
                rewards=[0.5, 1.0] * 8,
                words=[3] * 16,
                truncated=0,
                spread=0.5,
                verdicts="0111" * 8,
            ),
        )
        for step in range(steps)
    ]
    criteria = {"rub_1": CRITERIA}
    if unread is not None:
        figures = GroupFigures(1000.0, [None] * 16, [None] * 16, 0, reasons=["not_supported"] * 16)
        groups += [
            RunGroup(f"unread{step}", step, unread, "judge", False, figures)
            for step in range(steps)
        ]
        criteria[unread] = (Criterion("c1", "It is heard.", 1),)
    return LoadedRun(run, RunHistory(groups), criteria, [])


async def put(scoring: Scoring, *names: str) -> list[StoredRun]:
    found = []
    for name in names:
        await scoring.store.runs.put(Actor("red"), name, {})
        run = await scoring.store.runs.find("red", name)
        assert run is not None
        found.append(run)
    return found


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no list leave findings out because the machine is busy."""
    monkeypatch.setattr(runs, "FINDINGS_BUDGET_S", PATIENCE_S)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the runs whose history was read from the store, in order."""
    made: list[str] = []
    read = RunStore.read

    async def counted(self: RunStore, team: str, run_id: str, known: Mapping[int, Any]) -> Any:
        made.append(run_id)
        return await read(self, team, run_id, known)

    monkeypatch.setattr(RunStore, "read", counted)
    return made


async def test_a_list_has_all_runs_of_its_page_and_reads_none_of_them_again(
    scoring: Scoring, reads: list[str]
) -> None:
    names = [f"run {n}" for n in range(2 * runs.LOADED_AT_ONCE + 1)]
    await put(scoring, *names)
    listed = await scoring.runs.runs(RED, limit=20, after=None)
    assert [each.id for each in listed.data] == names[::-1]
    assert all(each.findings is not None for each in listed.data)
    assert sorted(reads) == names
    # Nor do their summaries need the histories, which other runs may have pushed out meanwhile.
    scoring.histories._cache.clear()
    assert await scoring.runs.runs(RED, limit=20, after=None) == listed
    assert sorted(reads) == names
    await scoring.store.runs.put(Actor("red"), names[1], {"state": "finished"})
    changed = await scoring.runs.runs(RED, limit=20, after=None)
    assert {each.id: each.state for each in changed.data}[names[1]] == "finished"
    assert sorted(reads) == sorted([*names, names[1]])


async def test_a_list_leaves_findings_out_when_its_time_is_spent_and_counts_them_later(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(scoring, "one", "two")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "FINDINGS_BUDGET_S", -1.0)
        listed = await scoring.runs.runs(RED, limit=20, after=None)
    assert [each.findings for each in listed.data] == [None, None]
    listed = await scoring.runs.runs(RED, limit=20, after=None)
    assert all(each.findings is not None for each in listed.data)


async def test_full_caches_change_no_list_and_no_run(
    scoring: Scoring, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_LISTED", 1)
    monkeypatch.setattr(run_histories, "CACHED_RUNS", 1)
    await put(scoring, "one", "two", "three")
    listed = await scoring.runs.runs(RED, limit=20, after=None)
    assert [each.id for each in listed.data] == ["three", "two", "one"]
    assert await scoring.runs.runs(RED, limit=20, after=None) == listed
    assert (len(scoring.runs._listed), len(scoring.histories._cache)) == (1, 1)
    reads.clear()
    for _ in range(2):
        assert (await scoring.runs.run(RED, "one")).id == "one"
    assert (await scoring.runs.run(RED, "two")).id == "two"
    assert reads == ["one", "two"]


class Made(RunHistories):
    """The histories of runs that are made as `loaded` does."""

    def __init__(self, store: RunStore, **more: Any) -> None:
        super().__init__(store)
        self._more = more

    async def load(self, run: StoredRun) -> LoadedRun:
        return loaded(run, **self._more)


async def test_criteria_with_findings_come_first_and_name_them(scoring: Scoring) -> None:
    await put(scoring, "run")
    histories = Made(scoring.store.runs, unread="rub_2")
    service = runs.RunService(scoring.store.runs, scoring.store.budgets, histories)
    kinds = {(each.kind, each.criterion) for each in (await service.findings(RED, "run")).data}
    assert ("unknown", None) in kinds
    found = await service.criteria(RED, "run")
    listed = [(each.text, each.findings, each.total.judged) for each in found.data]
    rollouts = 16 * MIN_STEPS
    assert listed[0] == ("It is text.", ["saturated"], rollouts)
    # A rubric whose rollouts could not be read is there, without verdicts.
    assert listed[1:] == [("It is good.", [], rollouts), ("It is heard.", [], 0)]


async def test_runs_that_were_never_scored_are_compared_without_spans(scoring: Scoring) -> None:
    await put(scoring, "one", "two")
    store = scoring.store
    service = RunComparisonService(store.runs, store.run_groups, scoring.histories)
    found = await service.compare(RED, ["one", "two"])
    assert [each.id for each in found.runs] == ["one", "two"]
    assert (found.spans, found.prompts, found.criteria) == ([], [], [])
    (difference,) = found.differences
    assert (difference.prompts, difference.difference.value) == (0, None)


FEBRUARY = datetime(2026, 2, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "since", "left"),
    [
        ("day", FEBRUARY.replace(hour=0), timedelta(hours=12)),
        ("month", FEBRUARY.replace(day=1, hour=0), timedelta(days=1, hours=12)),
        ("day", FEBRUARY.replace(day=25), timedelta()),  # it has ended since
        ("total", FEBRUARY.replace(year=2025), None),
    ],
)
def test_a_budget_is_projected_to_the_end_of_its_window(
    window: BudgetWindow,
    since: datetime,
    left: timedelta | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_histories, "now", lambda: FEBRUARY)
    planned, spent, per_step = 100_000, 7.0, 0.1
    at = now()
    run = StoredRun("run", "red", "running", None, planned, {}, at, at, at)
    budget = Budget("red", None, 1e9, 1.0, window, since, spent)
    cost = RunCost(cost_usd=per_step * MIN_STEPS)
    (found,) = [
        each
        for each in loaded(run).findings(running=True, cost=cost, budgets=[budget])
        if each.kind == "money"
    ]
    steps = planned - MIN_STEPS if left is None else left.total_seconds() / STEP_S
    assert found.values["projected_usd"] == pytest.approx(spent + per_step * steps)
