"""Read the history of a run from the store, and cache it until the run changes."""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from functools import cached_property
from time import monotonic

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.domain.agreement import cross_tables
from markscheme_server.domain.findings import (
    BudgetFigures,
    CriterionFigures,
    Finding,
    PairFigures,
    RunFigures,
    StepColumns,
    find,
)
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_blocks import Block, BlockMark
from markscheme_server.domain.run_columns import Counts, CriterionColumns, added
from markscheme_server.domain.run_history import RunHistory
from markscheme_server.store.budgets import Budget
from markscheme_server.store.engine.ids import now
from markscheme_server.store.runs import Repeats, RunCost, RunStore, StoredRun

CACHED_RUNS = 8
"""Histories in the cache of a process; one of 1,000 steps takes a few megabytes."""
COST_AGE_S, MAX_COST_AGE_S = 2.0, 60.0
"""Seconds for which a run's cost is cached: a page asks for it several times at once, and a list
for those of many runs that have ended.
"""
MAX_COSTS = 1000
PAIR_STEPS = 200
"""Criteria are compared over the last steps of a run."""
log = structlog.get_logger()


@dataclass(frozen=True)
class CriterionCounts:
    """A criterion over a run, in all rubrics that have its text.

    `criterion` is that of the first of `rubrics`. `rollouts`: their verdicts.
    """

    key: str
    criterion: Criterion
    rubrics: Sequence[str]
    rollouts: CriterionColumns
    teacher: Counts


@dataclass(frozen=True)
class CategoryCounts:
    """The criteria of a category over a run, added up."""

    criteria: int
    rollouts: CriterionColumns
    teacher: Counts


@dataclass(frozen=True)
class LoadedRun:
    """A run with its history.

    `criteria`: by rubric id, of the rubrics that the team sees. `marks`: those of the groups that
    the history is of.
    """

    run: StoredRun
    history: RunHistory
    criteria: Mapping[str, Sequence[Criterion]]
    repeats: Sequence[Repeats]
    marks: Mapping[int, BlockMark] = field(default_factory=dict)
    _found: dict[tuple[object, ...], list[Finding]] = field(default_factory=dict)

    @cached_property
    def keys(self) -> dict[str, list[str]]:
        """The keys of criteria by rubric id, in the order of the rubric."""
        return {
            rubric: [criterion_key(criterion) for criterion in criteria]
            for rubric, criteria in self.criteria.items()
        }

    @cached_property
    def counts(self) -> dict[str, CriterionCounts]:
        """Count the verdicts on each criterion, by its key."""
        found: dict[str, list[CriterionColumns]] = defaultdict(list)
        teachers: dict[str, Counts] = defaultdict(Counts)
        first: dict[str, Criterion] = {}
        rubrics: dict[str, list[str]] = defaultdict(list)
        for rubric, criteria in self.criteria.items():
            keys = self.keys[rubric]
            for key, criterion in zip(keys, criteria, strict=True):
                first.setdefault(key, criterion)
                rubrics[key].append(rubric)
            if (verdicts := self.history.columns.verdicts.get(rubric)) is not None:
                for number, key in enumerate(keys):
                    found[key].append(verdicts.of(number))
            of_teachers = self.history.columns.teachers.get(rubric, ())
            for key, counts in zip(keys, of_teachers, strict=bool(of_teachers)):
                teachers[key] = teachers[key].plus(counts)
        return {
            key: CriterionCounts(key, first[key], rubrics[key], added(found[key]), teachers[key])
            for key in first
        }

    @cached_property
    def categories(self) -> dict[str | None, CategoryCounts]:
        """Count the verdicts on the criteria of each category."""
        members: dict[str | None, list[CriterionCounts]] = defaultdict(list)
        for each in self.counts.values():
            members[each.criterion.category].append(each)
        return {category: _added(criteria) for category, criteria in members.items()}

    def findings(self, *, running: bool, cost: RunCost, budgets: Sequence[Budget]) -> list[Finding]:
        """Return the findings about the run, alarms first."""
        asked = (running, cost, *budgets)
        found = self._found.get(asked)
        if found is None:
            found = find(
                RunFigures(
                    steps=_step_columns(self.history),
                    criteria=self._criterion_figures(),
                    pairs=self._pairs(),
                    running=running,
                    planned_steps=self.run.steps,
                    cost_usd=cost.cost_usd,
                    seconds_per_step=self.history.seconds_per_step,
                    budgets=[_budget(budget) for budget in budgets],
                )
            )
            # Not read back: another thread may clear it meanwhile.
            self._found.clear()
            self._found[asked] = found
        return found

    def _criterion_figures(self) -> list[CriterionFigures]:
        repeats = {each.criterion_key: each for each in self.repeats}
        none = Repeats("", 0, 0)
        return [
            CriterionFigures(
                key,
                each.criterion.text,
                each.criterion.points,
                each.rollouts.steps,
                each.rollouts.met,
                each.rollouts.judged,
                each.teacher.met,
                each.teacher.judged,
                repeats.get(key, none).asked,
                repeats.get(key, none).flipped,
            )
            for key, each in self.counts.items()
        ]

    def _pairs(self) -> list[PairFigures]:
        start = next(iter(self.history.steps[-PAIR_STEPS:]), 0)
        found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        recent = self.history.verdicts(start)
        for rubric, keys in self.keys.items():
            for pair, cells in cross_tables(recent.get(rubric, ""), len(keys)).items():
                both = found[keys[pair[0]], keys[pair[1]]]
                for index, count in enumerate(cells):
                    both[index] += count
        return [PairFigures(first, second, *cells) for (first, second), cells in found.items()]


class RunHistories:
    """Reads run histories, and caches the most recently read ones."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._cache: OrderedDict[tuple[str, str], LoadedRun] = OrderedDict()
        self._costs: dict[tuple[str, str], tuple[float, RunCost]] = {}

    async def costs(self, runs: Sequence[StoredRun]) -> dict[str, RunCost]:
        """Return the costs of runs of one team by id, at most as old as `_cost_age` says."""
        at = monotonic()
        costs: dict[str, RunCost] = {}
        stale = []
        for run in runs:
            read_at, cost = self._costs.get((run.team, run.id), (-MAX_COST_AGE_S, RunCost()))
            if at - read_at < _cost_age(run):
                costs[run.id] = cost
            else:
                stale.append(run)
        if stale:
            team = stale[0].team
            read = await self._store.costs(team, [run.id for run in stale])
            if len(self._costs) >= MAX_COSTS:
                self._costs.clear()
            self._costs |= {(team, run_id): (at, cost) for run_id, cost in read.items()}
            costs |= read
        return costs

    async def load(self, run: StoredRun) -> LoadedRun:
        """Return the current history of a run."""
        key = (run.team, run.id)
        cached = self._cache.get(key)
        if cached is not None and cached.run == run:
            self._cache.move_to_end(key)
            return cached
        known = cached.marks if cached is not None else {}
        read = await self._store.read(*key, known)
        before = cached.history if cached is not None else None

        def make() -> RunHistory:
            return RunHistory(read.groups(), read.second, read.metrics(), before, read.blocks)

        # In a thread, because a long run takes a hundred milliseconds of the event loop.
        history = await asyncio.to_thread(make)
        last = max(read.marks, default=None)
        if full := {first: read.marks[first] for first in sorted(read.unread) if first != last}:
            await self._save(run, await asyncio.to_thread(history.blocks, full))
        criteria = await self._store.criteria(run.team, history.rubrics)
        loaded = LoadedRun(run, history, criteria, read.repeats, read.marks)
        self._cache[key] = loaded
        self._cache.move_to_end(key)
        while len(self._cache) > CACHED_RUNS:
            self._cache.popitem(last=False)
        return loaded

    async def _save(self, run: StoredRun, blocks: Sequence[Block]) -> None:
        try:
            await self._store.save_blocks(run.team, run.id, blocks)
        except SQLAlchemyError as error:
            # They spare others time; this answer does not need them.
            log.warning("run_blocks_not_stored", run_id=run.id, error=type(error).__name__)


def _cost_age(run: StoredRun) -> float:
    """Return the most seconds for which a run's cost is cached: a tenth of its idle time."""
    idle_s = (now() - run.changed_at).total_seconds()
    return min(MAX_COST_AGE_S, max(COST_AGE_S, idle_s / 10))


def _added(criteria: Sequence[CriterionCounts]) -> CategoryCounts:
    teacher = Counts()
    for each in criteria:
        teacher = teacher.plus(each.teacher)
    return CategoryCounts(len(criteria), added([each.rollouts for each in criteria]), teacher)


def _step_columns(history: RunHistory) -> StepColumns:
    columns = history.columns
    c, s = columns.counts, columns.sums
    reasons, none = columns.reasons, dict[str, int]()
    second = [(step, *history.second[step]) for step in columns.steps if step in history.second]
    seconded, *second_sums = zip(*second, strict=True) if second else ((), (), (), ())
    return StepColumns(
        columns.steps,
        c["rollouts"],
        [sum(reasons.get(step, none).values()) for step in columns.steps],
        reasons,
        s["reward"],
        s["reward_squares"],
        c["truncated"],
        c["comparable"],
        c["flat"],
        [
            words if known == rollouts else None
            for words, known, rollouts in zip(
                c["words"], c["words_known"], c["rollouts"], strict=True
            )
        ],
        (c["beside_teacher"], s["beside_reward"], s["beside_other"]),
        (seconded, second_sums),
        (c["length_rollouts"], c["length_groups"], s["xx"], s["yy"], s["xy"]),
        history.metrics,
    )


def _budget(budget: Budget) -> BudgetFigures:
    return BudgetFigures(
        window=budget.window,
        spent_usd=budget.spent_usd,
        soft_usd=budget.soft_usd,
        hard_usd=budget.hard_usd,
        ends_in_s=_ends_in_s(budget),
        own=budget.run_id is not None,
    )


def _ends_in_s(budget: Budget) -> float | None:
    since = budget.since.astimezone(UTC)
    if budget.window == "total":
        return None
    if budget.window == "day":
        end = since + timedelta(days=1)
    else:
        end = (since.replace(day=1) + timedelta(days=32)).replace(day=1)
    return max(0.0, (end - now()).total_seconds())
