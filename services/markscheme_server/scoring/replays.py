"""Estimate, create, read and cancel replays, each within the caller's team."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import monotonic

from markscheme import schema
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.replay import Comparison, ReplayedGroup, compare
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.usage import to_usd
from markscheme_server.errors import Conflict, NotFound, Unprocessable
from markscheme_server.judge.base import Judge, VerifyTask
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.replay_groups import GroupReplayer, ReplayFailed
from markscheme_server.scoring.replay_worker import ReplayWorker
from markscheme_server.scoring.runs import find_run
from markscheme_server.scoring.verdict_plan import VerdictPlan
from markscheme_server.store.engine.ids import now
from markscheme_server.store.lineage import LineageStore
from markscheme_server.store.replays import (
    LIVE,
    GroupResult,
    Progress,
    ReplayStore,
    RunGroupRef,
    StoredReplay,
)
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.runs import RunStore

CACHE_FACTOR = 20
"""The comparison of a running replay is cached for this multiple of the time that it took."""
MAX_SAMPLE = 200
"""Groups that an estimate reads: each takes some milliseconds and all its texts."""
MAX_COMPARISONS = 32
"""Comparisons in the cache of a process."""


@dataclass(frozen=True, slots=True)
class _CachedComparison:
    """The comparison of `groups` groups, served until `until` even if more are done by then."""

    groups: int
    until: float
    comparison: schema.ReplayComparison


class ReplayService:
    """The operations behind `/v1/replays`."""

    def __init__(
        self,
        store: ReplayStore,
        runs: RunStore,
        rubrics: RubricStore,
        lineage: LineageStore,
        judges: Judges,
        groups: GroupReplayer,
        worker: ReplayWorker,
    ) -> None:
        self._store, self._runs, self._rubrics, self._lineage = store, runs, rubrics, lineage
        self._judges, self._groups, self._worker = judges, groups, worker
        self._comparisons: OrderedDict[str, _CachedComparison] = OrderedDict()

    async def estimate(
        self, caller: Caller, request: schema.ReplayRequest
    ) -> schema.ReplayEstimate:
        """Return an upper bound of a replay's cost. Raises `NotFound` and `Unprocessable`."""
        groups, judge = await self._select(caller, request)
        at = now()
        replay = StoredReplay(
            "", caller.team, request.run_id, request.model_dump(), _identity(judge), "queued",
            None, at, at,
        )  # fmt: skip
        sample = _evenly(groups, MAX_SAMPLE)
        rollouts = cached = calls = prompt_tokens = completion_tokens = nano = found = 0
        priced = True
        for group in sample:
            try:
                planned = await self._groups.plan(replay, group.id)
            except ReplayFailed as error:
                # Its judges were found above, and the service's do not change.
                raise NotFound(str(error), code="rubric_not_found", param="rubric_id") from error
            if planned is None:
                continue
            found += 1
            rollouts += len(planned.rollouts)
            for plan in planned.plans:
                if plan.query.is_free:
                    continue
                cached += len(plan.known)
                for task in _tasks(plan):
                    calls += 1
                    if isinstance(plan.query.judge, OpenAIJudge):
                        size = plan.query.judge.size(task)
                        prompt_tokens += size.prompt_tokens
                        completion_tokens += size.completion_tokens
                        nano += size.max_cost or 0
                        priced = priced and size.max_cost is not None
                        await asyncio.sleep(0)  # a question takes a millisecond to write

        def scaled(count: int) -> int:
            return round(count * len(groups) / len(sample))

        return schema.ReplayEstimate(
            run_id=request.run_id,
            groups=scaled(found),
            sampled_groups=len(sample),
            rollouts=scaled(rollouts),
            cached_verdicts=scaled(cached),
            calls=scaled(calls),
            prompt_tokens=scaled(prompt_tokens),
            completion_tokens=scaled(completion_tokens),
            max_usd=to_usd(scaled(nano)) if priced else None,
        )

    async def begin(self, caller: Caller, request: schema.ReplayRequest) -> schema.Replay:
        """Store a replay and wake a worker. Raises `NotFound` and `Unprocessable`."""
        groups, judge = await self._select(caller, request)
        made = await self._store.create(
            caller.team,
            request.run_id,
            request.model_dump(),
            _identity(judge),
            [group.id for group in groups],
        )
        self._worker.wake()
        return _replay(made, Progress(groups=len(groups)))

    async def replays(
        self,
        caller: Caller,
        *,
        run_id: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> schema.ReplayList:
        """Return a page of replays, the newest first. `after`: the last one of the page before."""
        page, more = await self._store.page(caller.team, run_id, limit, after)
        progress = await self._store.progress(caller.team, [each.id for each in page])
        return schema.ReplayList(
            data=[_replay(each, progress[each.id]) for each in page], has_more=more
        )

    async def replay(self, caller: Caller, replay_id: str) -> schema.ReplayDetail:
        """Return a replay and the comparison of its finished groups. Raises `NotFound`."""
        found = await self._find(caller, replay_id)
        progress = (await self._store.progress(caller.team, [found.id]))[found.id]
        return schema.ReplayDetail(
            **_replay(found, progress).model_dump(),
            comparison=await self._compare(found, progress.compared),
        )

    async def cancel(self, caller: Caller, replay_id: str) -> schema.Replay:
        """Cancel a replay; finished groups stay. Raises `NotFound`, or `Conflict` if it is over."""
        found = await self._find(caller, replay_id)
        if not await self._store.change(found, "cancelled"):
            found = await self._find(caller, replay_id)
            if found.state != "cancelled":
                raise Conflict(
                    f"the replay is over: it is {found.state}",
                    code="replay_over",
                    param="replay_id",
                )
        found = await self._find(caller, replay_id)
        progress = await self._store.progress(caller.team, [found.id])
        return _replay(found, progress[found.id])

    async def _find(self, caller: Caller, replay_id: str) -> StoredReplay:
        found = await self._store.find(caller.team, replay_id)
        if found is None:
            raise NotFound(
                f"there is no replay {replay_id!r}; GET /v1/replays lists the team's",
                code="replay_not_found",
                param="replay_id",
            )
        return found

    async def _select(
        self, caller: Caller, request: schema.ReplayRequest
    ) -> tuple[list[RunGroupRef], Judge | None]:
        """Return the groups to score again, and the judge that the request names.

        Raises `NotFound` for an unknown run or rubric, and `Unprocessable` if no group can be
        scored this way.
        """
        team = caller.team
        await find_run(self._runs, caller, request.run_id)
        judge = self._judges.get(request.judge, "verifier") if request.judge is not None else None
        groups = await self._store.run_groups(team, request.run_id)
        if request.rubric_id is not None:
            rubric = await self._rubrics.find(team, request.rubric_id)
            if rubric is None:
                raise NotFound(
                    f"there is no rubric {request.rubric_id!r}",
                    code="rubric_not_found",
                    param="rubric_id",
                )
            versions = (await self._lineage.family(team, rubric.id)).visible
            groups = [
                each
                for each in groups
                if each.prompt_key == rubric.prompt_key or each.rubric_id in versions
            ]
        if not groups:
            raise Unprocessable(
                "there is nothing to score again: the run has no stored group"
                + (" for this rubric's prompt or versions" if request.rubric_id else "")
                + "; pruning removes old ones",
                code="no_groups",
                param="rubric_id" if request.rubric_id else "run_id",
            )
        await self._require_judges(team, request, groups, judge)
        return groups, judge

    async def _require_judges(
        self,
        team: str,
        request: schema.ReplayRequest,
        groups: Sequence[RunGroupRef],
        judge: Judge | None,
    ) -> None:
        """Raise `Unprocessable` unless the service has a suitable judge for every group."""
        # Thousands of groups share few judges and rubrics.
        pairs = dict.fromkeys((g.judge, request.rubric_id or g.rubric_id) for g in groups)
        criteria = await self._runs.criteria(team, sorted({rubric for _, rubric in pairs}))
        for scored_by, rubric_id in pairs:
            by = judge or self._judges.by_identity(scored_by)
            if by is None:
                raise Unprocessable(
                    "the judge that scored the run is not among the service's judges any more: "
                    "name another one",
                    code="judge_gone",
                    param="judge",
                )
            if by.gateway is None and any(c.check is None for c in criteria.get(rubric_id, ())):
                raise Unprocessable(
                    f"the judge {by.name!r} decides criteria with a check only, and the rubric "
                    f"{rubric_id!r} has others: name a judge with a model",
                    code="judge_needs_checks",
                    param="judge",
                )

    async def _compare(self, replay: StoredReplay, compared: int) -> schema.ReplayComparison:
        """Return the comparison of the finished groups, of which there are `compared`."""
        known = self._comparisons.get(replay.id)
        if known is not None and (
            # A group's result never changes, so an equal number means equal results.
            known.groups == compared or (replay.state in LIVE and monotonic() < known.until)
        ):
            return known.comparison
        began = monotonic()
        stored = await self._store.results(replay.team, replay.id)
        # In a thread, because a long run takes hundreds of milliseconds of the event loop.
        results = await asyncio.to_thread(lambda: [GroupResult.load(each) for each in stored])
        rubrics = {each.rubric_before for each in results} | {each.rubric_after for each in results}
        criteria = await self._runs.criteria(replay.team, sorted(rubrics))
        made = await asyncio.to_thread(_comparison, results, criteria)
        ended = monotonic()
        self._comparisons[replay.id] = _CachedComparison(
            compared, ended + CACHE_FACTOR * (ended - began), made
        )
        self._comparisons.move_to_end(replay.id)
        while len(self._comparisons) > MAX_COMPARISONS:
            self._comparisons.popitem(last=False)
        return made


def _evenly(groups: Sequence[RunGroupRef], most: int) -> Sequence[RunGroupRef]:
    """Return at most so many of the groups, at equal distances."""
    if len(groups) <= most:
        return groups
    return [groups[number * len(groups) // most] for number in range(most)]


def _tasks(plan: VerdictPlan) -> list[VerifyTask]:
    """Return the judge calls that a plan needs."""
    query = plan.query
    return [
        VerifyTask(query.prompt, criteria, unit, query.verify)
        for unit in plan.units
        for criteria in query.calls(plan.missing)
    ]


def _identity(judge: Judge | None) -> str | None:
    return judge.verifier_identity if judge is not None else None


def _replay(replay: StoredReplay, progress: Progress) -> schema.Replay:
    return schema.Replay(
        **schema.ReplayRequest.model_validate(replay.request).model_dump(),
        id=replay.id,
        state=replay.state,
        reason=replay.reason,
        groups=progress.groups,
        done=progress.done,
        skipped=progress.done - progress.compared,
        calls=progress.calls,
        cost_usd=progress.cost_usd,
        unpriced_calls=progress.unpriced_calls,
        cached_verdicts=progress.cached_verdicts,
        saved_usd=progress.saved_usd,
        created_at=replay.created_at,
        changed_at=replay.changed_at,
    )


def _comparison(
    results: Sequence[GroupResult], criteria: dict[str, list[Criterion]]
) -> schema.ReplayComparison:
    keys = {id_: [criterion_key(c) for c in each] for id_, each in criteria.items()}
    texts = {criterion_key(c): c.text for each in criteria.values() for c in each}
    found = compare(
        [
            ReplayedGroup(
                result.rollouts,
                # If a rubric is no longer visible, compare the rewards only.
                keys.get(result.rubric_before, ()),
                keys.get(result.rubric_after, ()),
            )
            for result in results
        ]
    )
    return _from_comparison(found, texts)


def _from_comparison(found: Comparison, texts: dict[str, str]) -> schema.ReplayComparison:
    return schema.ReplayComparison(
        rollouts=found.rollouts,
        unknown_before=found.unknown_before,
        unknown_after=found.unknown_after,
        before=found.before,
        after=found.after,
        difference=schema.MeanInterval(**found.difference._asdict()),
        rank_agreement=schema.MeanInterval(**found.rank_agreement._asdict()),
        rank_groups=found.rank_groups,
        sign_changes=schema.MeanInterval(**found.sign_changes._asdict()),
        criteria=[
            schema.CriterionFlips(**asdict(each), text=texts[each.key]) for each in found.criteria
        ],
    )
