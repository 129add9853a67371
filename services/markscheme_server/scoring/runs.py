"""Training runs of the caller's team: steps, criteria and findings."""

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import accumulate
from time import perf_counter
from typing import Any

from pydantic import TypeAdapter

from markscheme import schema
from markscheme.vocabulary import FindingKind, RunState
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.findings import Finding
from markscheme_server.domain.run_columns import CriterionColumns
from markscheme_server.domain.run_history import RunHistory
from markscheme_server.domain.step_totals import StepTotals
from markscheme_server.errors import Conflict, Forbidden, NotFound
from markscheme_server.scoring.finding_gauge import FindingGauge
from markscheme_server.scoring.paging import page_after, unknown_after
from markscheme_server.scoring.run_histories import CriterionCounts, LoadedRun, RunHistories
from markscheme_server.store.audit import actor_of
from markscheme_server.store.budgets import Budget, BudgetStore
from markscheme_server.store.engine.ids import now
from markscheme_server.store.runs import RunCost, RunStore, StoredRun

CURVE_BINS = 40
MAX_CRITERION_WINDOW = 100
SILENT_STEPS = 10
MIN_SILENCE = timedelta(minutes=1)
"""A run is silent after this long without a score, or 10 of its median steps if longer."""
MAX_RUNS, MAX_RECORDS = 10_000, 100_000
"""Limits: runs of a team (beyond it only scoring creates runs), steps of a run with metrics."""
MAX_METRICS = 64 * 1024 * 1024
"""Characters of a run's metrics as JSON: who reads the run holds them in three times the memory."""
MAX_LISTED = 1000
"""Summaries in the cache of a process."""
LOADED_AT_ONCE = 2
"""Runs that a list reads side by side: while the database reads one, another is added up."""
_SPANS = TypeAdapter(list[schema.CriterionSpan])
FINDINGS_BUDGET_S = 0.2
"""Seconds that a list spends on computing findings that are not cached."""


class RunService:
    """The operations behind `/v1/runs`."""

    def __init__(self, runs: RunStore, budgets: BudgetStore, histories: RunHistories) -> None:
        self._runs, self._budgets, self._histories = runs, budgets, histories
        self._gauge = FindingGauge()
        self._listed: dict[tuple[str, str], tuple[StoredRun, float | None, schema.RunSummary]] = {}

    async def runs(self, caller: Caller, *, limit: int, after: str | None) -> schema.RunList:
        """Return a page of runs, most recently active first. `after`: the previous page's last run.

        Findings that are not cached are counted until `FINDINGS_BUDGET_S` is spent; then they are
        null.
        """
        page, more = await self._runs.page(caller.team, limit, after)
        if after is not None and not page and await self._runs.find(caller.team, after) is None:
            raise unknown_after(after)
        listed = {run.id: found for run in page if (found := self._find_listed(run)) is not None}
        stale = [run for run in page if run.id not in listed]
        loaded, costs, budgets = await asyncio.gather(
            self._load_each(stale[:LOADED_AT_ONCE]),
            self._histories.costs(page),
            self._budgets.find(caller.team),
        )
        until = perf_counter() + FINDINGS_BUDGET_S
        listed |= await self._summarise_each(loaded, costs, budgets, until)
        for start in range(LOADED_AT_ONCE, len(stale), LOADED_AT_ONCE):
            loaded = await self._load_each(stale[start : start + LOADED_AT_ONCE])
            listed |= await self._summarise_each(loaded, costs, budgets, until)
        data = [_with_money(listed[run.id], costs[run.id]) for run in page]
        return schema.RunList(data=data, has_more=more)

    def _find_listed(self, run: StoredRun) -> schema.RunSummary | None:
        """Return the cached summary of a run, unless it is old or without findings."""
        cached = self._listed.get((run.team, run.id))
        if cached is None:
            return None
        summarised, per_step, summary = cached
        # A run becomes silent without any change of its row.
        if summarised != run or summary.findings is None or summary.state != _state(run, per_step):
            return None
        return summary

    async def _load_each(self, runs: Sequence[StoredRun]) -> list[LoadedRun]:
        return await asyncio.gather(*map(self._histories.load, runs))

    async def _summarise_each(
        self,
        loaded: Sequence[LoadedRun],
        costs: Mapping[str, RunCost],
        budgets: Sequence[Budget],
        until: float,
    ) -> dict[str, schema.RunSummary]:
        """Return the summaries of runs by id, and cache them. `until`: as of `perf_counter`."""
        summaries = {}
        for each in loaded:
            run = each.run
            summary = summarise(each, costs[run.id])
            if perf_counter() < until:
                found = await self._findings(each, costs[run.id], budgets)
                summary = summary.model_copy(update={"findings": _counts(found)})
            summaries[run.id] = summary
            self._listed[run.team, run.id] = (run, each.history.seconds_per_step, summary)
            if len(self._listed) > MAX_LISTED:
                del self._listed[next(iter(self._listed))]
        return summaries

    async def run(self, caller: Caller, run_id: str) -> schema.RunDetail:
        """Return a run. Raises `NotFound`."""
        loaded, cost, found = await self._load_findings(caller, run_id)
        history, run = loaded.history, loaded.run
        total = history.total
        done = len(history.steps)
        summary = summarise(loaded, cost).model_copy(update={"findings": _counts(found)})
        return schema.RunDetail(
            **summary.model_dump(),
            reasons=dict(total.reasons),
            judges=history.judges,
            rubrics=len(history.rubrics),
            truncated=total.truncated,
            flat_groups=total.flat,
            comparable_groups=total.comparable,
            second_judge=total.second[0],
            second_judge_now=history.now.second_reward if history.steps else None,
            projected_usd=cost.cost_usd / done * run.steps
            if run.steps is not None and done and not cost.unpriced_calls
            else None,
            pruned_until=history.pruned_until,
        )

    async def steps(
        self,
        caller: Caller,
        run_id: str,
        *,
        bins: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> schema.StepList:
        """Return the requested steps in a limited number of bins. Raises `NotFound`."""
        history = (await self._load(caller, run_id)).history
        # In a thread: all steps of a long run take seconds of the event loop.
        spans = await asyncio.to_thread(
            lambda: [_span(totals) for totals in history.spans(bins, first_step, last_step)]
        )
        return schema.StepList(first_step=history.first_step, data=spans)

    async def criteria(
        self,
        caller: Caller,
        run_id: str,
        *,
        bins: int = 100,
        limit: int = 40,
        after: str | None = None,
        criterion: str | None = None,
    ) -> schema.CriterionList:
        """Return criteria, those with findings first, then the most asked. Raises `NotFound`.

        `after`: the key of the last criterion of the page before. `criterion`: this one only.
        """
        loaded, _, found = await self._load_findings(caller, run_id)
        return await asyncio.to_thread(
            _criteria, loaded, found, bins=bins, limit=limit, after=after, criterion=criterion
        )

    async def findings(self, caller: Caller, run_id: str) -> schema.FindingList:
        """Return the findings about a run, alarms first. Raises `NotFound`."""
        _, _, found = await self._load_findings(caller, run_id)
        return schema.FindingList(
            data=[
                schema.Finding(
                    kind=each.kind,
                    level=each.level,
                    sentence=each.sentence,
                    since_step=each.since_step,
                    criterion=each.criterion,
                    values=dict(each.values),
                    groups=schema.GroupFilter(**asdict(each.groups)),
                )
                for each in found
            ]
        )

    async def require_reader(self, caller: Caller, run_id: str) -> None:
        """Raise `Forbidden` unless the key may read, or may score and created this run."""
        if "read" in caller.scopes:
            return
        own = caller.key is not None and caller.key == await self._runs.creator(caller.team, run_id)
        if not own or "score" not in caller.scopes:
            raise Forbidden(
                "this call needs a key with the scope 'read', or the key with the scope 'score' "
                f"that created the run; this one has {', '.join(sorted(caller.scopes))}",
                code="missing_scope",
            )

    async def put(self, caller: Caller, run_id: str, payload: schema.RunPut) -> schema.RunDetail:
        """Create or update a run; omitted fields stay unchanged.

        A new state without a reason clears the old reason. Raises `Conflict`.
        """
        await self._require_room(caller, run_id)
        changes = payload.model_dump(exclude_unset=True)
        if "state" in changes:
            changes.setdefault("reason", None)
        await self._runs.put(actor_of(caller), run_id, changes)
        return await self.run(caller, run_id)

    async def add_records(
        self, caller: Caller, run_id: str, records: Sequence[schema.StepRecord]
    ) -> None:
        """Store the trainer's metrics of steps; a step that is sent again is replaced.

        Raises `Conflict`.
        """
        await self._require_room(caller, run_id)
        metrics = {record.step: record.metrics for record in records}
        if not await self._runs.add_records(
            actor_of(caller), run_id, metrics, most=MAX_RECORDS, most_characters=MAX_METRICS
        ):
            raise Conflict(
                f"a run has metrics of {MAX_RECORDS:,} steps and {MAX_METRICS // 2**20} MiB at "
                "most: send fewer, or those of every tenth step, or begin another run",
                code="too_many_records",
                param="records",
            )

    async def _require_room(self, caller: Caller, run_id: str) -> None:
        if (
            await self._runs.find(caller.team, run_id) is None
            and await self._runs.count(caller.team) >= MAX_RUNS
        ):
            raise Conflict(
                f"the team has {MAX_RUNS:,} runs, the most that are made by request: use the name "
                "of an earlier one. A run that is scored is stored all the same",
                code="too_many_runs",
                param="run_id",
            )

    async def _load(self, caller: Caller, run_id: str) -> LoadedRun:
        return await self._histories.load(await find_run(self._runs, caller, run_id))

    async def _load_findings(
        self, caller: Caller, run_id: str
    ) -> tuple[LoadedRun, RunCost, list[Finding]]:
        run = await find_run(self._runs, caller, run_id)
        loaded, costs, budgets = await asyncio.gather(
            self._histories.load(run),
            self._histories.costs([run]),
            self._budgets.find(caller.team),
        )
        cost = costs[run.id]
        return loaded, cost, await self._findings(loaded, cost, budgets)

    async def _findings(
        self, loaded: LoadedRun, cost: RunCost, budgets: Sequence[Budget]
    ) -> list[Finding]:
        # In a thread, because many criteria and steps take a while of the event loop.
        found = await asyncio.to_thread(
            loaded.findings,
            running=_state(loaded.run, loaded.history.seconds_per_step) == "running",
            cost=cost,
            budgets=[budget for budget in budgets if budget.run_id in (None, loaded.run.id)],
        )
        self._gauge.note(loaded.run, (each.kind for each in found))
        return found


async def find_run(
    runs: RunStore, caller: Caller, run_id: str, *, param: str = "run_id"
) -> StoredRun:
    """Return a run of the caller's team. Raises `NotFound`; `param`: what named the run."""
    run = await runs.find(caller.team, run_id)
    if run is None:
        raise NotFound(
            f"there is no run {run_id!r}; GET /v1/runs lists the team's",
            code="run_not_found",
            param=param,
        )
    return run


def _state(run: StoredRun, per_step: float | None) -> RunState:
    match run.state:
        case "finished" | "stopped" | "failed":
            return run.state
    if run.last_scored_at is None or per_step is None:
        return "running"
    silence = max(MIN_SILENCE, timedelta(seconds=SILENT_STEPS * per_step))
    return "silent" if now() - run.last_scored_at > silence else "running"


def _counts(found: Sequence[Finding]) -> schema.FindingCounts:
    alarms = sum(each.level == "alarm" for each in found)
    return schema.FindingCounts(alarm=alarms, watch=len(found) - alarms)


def summarise(loaded: LoadedRun, cost: RunCost) -> schema.RunSummary:
    """Return a run without its findings."""
    run, history = loaded.run, loaded.history
    total = history.total
    return schema.RunSummary(
        id=run.id,
        team=run.team,
        state=_state(loaded.run, loaded.history.seconds_per_step),
        reason=run.reason,
        facts=dict(run.facts),
        steps=run.steps,
        first_step=history.first_step,
        last_step=history.last_step,
        created_at=run.created_at,
        last_scored_at=run.last_scored_at,
        groups=total.groups,
        rollouts=total.rollouts,
        unscored=total.unscored,
        reward_first=history.first.reward,
        reward_now=history.now.reward,
        teacher=history.now.teacher_reward,
        curve=history.curve(CURVE_BINS),
        cost_usd=cost.cost_usd,
        saved_usd=cost.saved_usd,
        unpriced_calls=cost.unpriced_calls,
        findings=None,
    )


def _with_money(summary: schema.RunSummary, cost: RunCost) -> schema.RunSummary:
    return summary.model_copy(
        update={
            "cost_usd": cost.cost_usd,
            "saved_usd": cost.saved_usd,
            "unpriced_calls": cost.unpriced_calls,
        }
    )


def _span(totals: StepTotals) -> schema.StepSpan:
    low, high = totals.quantiles() or (None, None)
    return schema.StepSpan(
        first_step=totals.first,
        last_step=totals.last,
        groups=totals.groups,
        rollouts=totals.rollouts,
        unscored=totals.unscored,
        reasons=dict(totals.reasons),
        truncated=totals.truncated,
        reward=totals.reward,
        low=low,
        high=high,
        teacher=totals.teacher_reward,
        second_judge=totals.second_reward,
        words=totals.mean_words,
        length_reward=totals.length_correlation,
        flat_groups=totals.flat,
        comparable_groups=totals.comparable,
        metrics=totals.mean_metrics,
    )


def _criteria(
    loaded: LoadedRun,
    found: Sequence[Finding],
    *,
    bins: int,
    limit: int,
    after: str | None,
    criterion: str | None,
) -> schema.CriterionList:
    kinds: dict[str, list[FindingKind]] = {}
    for each in found:
        if each.criterion is not None:
            kinds.setdefault(each.criterion, []).append(each.kind)
    asked = sorted(
        (each for key, each in loaded.counts.items() if criterion in (None, key)),
        key=lambda each: (
            each.key not in kinds,
            -sum(each.rollouts.judged) - sum(each.rollouts.unknown),
            each.key,
        ),
    )
    page, more = page_after(asked, lambda each: each.key, after=after, limit=limit)
    history = loaded.history
    return schema.CriterionList(
        first_step=history.first_step,
        last_step=history.last_step,
        categories=[
            schema.CategoryHistory(
                category=category,
                criteria=each.criteria,
                teacher=schema.CriterionShare(**each.teacher._asdict()),
                **_over_steps(history, each.rollouts, bins),
            )
            for category, each in loaded.categories.items()
        ],
        data=[_criterion(loaded, each, bins, kinds.get(each.key, [])) for each in page],
        total=len(asked),
        has_more=more,
    )


def _criterion(
    loaded: LoadedRun,
    counts: CriterionCounts,
    bins: int,
    findings: Sequence[FindingKind],
) -> schema.CriterionHistory:
    criterion = counts.criterion
    return schema.CriterionHistory(
        key=counts.key,
        criterion_id=criterion.id,
        text=criterion.text,
        category=criterion.category,
        points=criterion.points,
        rubrics=list(counts.rubrics),
        teacher=schema.CriterionShare(**counts.teacher._asdict()),
        findings=list(findings),
        **_over_steps(loaded.history, counts.rollouts, bins),
    )


def _over_steps(history: RunHistory, columns: CriterionColumns, bins: int) -> dict[str, Any]:
    """Return the shares and the spans of a criterion, or of a category, by step."""
    begin, width = history.span_of(bins, None, None)
    steps, start = columns.steps, 0
    # What there was up to each step: a span is a difference of two.
    met, judged, unknown = (list(accumulate(column, initial=0)) for column in columns[1:])
    rows = []
    while start < len(steps):
        end = begin + ((steps[start] - begin) // width + 1) * width
        stop = bisect_left(steps, end, start)
        rows.append(
            {
                "first_step": steps[start],
                "last_step": steps[stop - 1],
                "met": met[stop] - met[start],
                "judged": judged[stop] - judged[start],
                "unknown": unknown[stop] - unknown[start],
            }
        )
        start = stop
    spans = _SPANS.validate_python(rows)  # all at once, which takes half as long as one by one
    return {
        "total": schema.CriterionShare(**_sums(columns, 0, len(steps))),
        "first": schema.CriterionShare(**_sums(columns, 0, _window(columns))),
        "now": share_now(columns),
        "spans": spans,
    }


def share_now(columns: CriterionColumns) -> schema.CriterionShare:
    """Return the share of a criterion, or of a category, in its last window of steps."""
    steps = len(columns.steps)
    return schema.CriterionShare(**_sums(columns, max(0, steps - _window(columns)), steps))


def _window(columns: CriterionColumns) -> int:
    return max(1, min(MAX_CRITERION_WINDOW, len(columns.steps) // 4))


def _sums(columns: CriterionColumns, start: int, stop: int) -> dict[str, int]:
    return {
        "met": sum(columns.met[start:stop]),
        "judged": sum(columns.judged[start:stop]),
        "unknown": sum(columns.unknown[start:stop]),
    }
