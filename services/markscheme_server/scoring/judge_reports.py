"""Whether judges and criteria can be trusted: what the caller's team has seen of them."""

import asyncio
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

from markscheme import schema
from markscheme_server import metrics
from markscheme_server.domain.agreement import agreement, wilson
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.run_columns import Counts
from markscheme_server.domain.usage import to_usd
from markscheme_server.errors import NotFound
from markscheme_server.judge.base import Judge
from markscheme_server.judge.breaker import BreakerState
from markscheme_server.scoring.rubric_health import load_health
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.store.engine.ids import now
from markscheme_server.store.judge_reports import JudgeCalls, JudgeReportStore
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.runs import RunStore

WINDOW = timedelta(days=30)
MAX_DISAGREEMENTS = 50


class JudgeReportService:
    """What `/v1/judges/report` and `/v1/rubrics/{id}/health` answer."""

    def __init__(
        self,
        reports: JudgeReportStore,
        runs: RunStore,
        rubrics: RubricStore,
        groups: RunGroupService,
        judges: Mapping[str, Judge],
    ) -> None:
        self._reports, self._runs, self._rubrics = reports, runs, rubrics
        self._groups, self._judges = groups, judges

    async def judges(self, caller: Caller) -> schema.JudgeReports:
        """Return the judges that the team met in the last 30 days, the most called first."""
        since = now() - WINDOW
        calls, unscored, second, repeats, disagreements = await asyncio.gather(
            self._reports.calls(caller.team, since),
            self._reports.unscored(caller.team, since),
            self._reports.second(caller.team, since),
            self._reports.repeats(caller.team, since),
            self._disagreements(caller.team, since),
        )
        names = {judge.verifier_identity: name for name, judge in self._judges.items()}
        met = dict.fromkeys([*calls, *unscored, *(first for first, _ in second), *repeats])
        data = [
            self._report(
                judge,
                names.get(judge),
                calls.get(judge, JudgeCalls()),
                unscored.get(judge, 0),
                {other: pairs for (first, other), pairs in second.items() if first == judge},
                repeats.get(judge),
            )
            for judge in met
        ]
        data.sort(key=lambda report: (-report.calls, report.judge))
        return schema.JudgeReports(data=data, disagreements=disagreements)

    async def _disagreements(self, team: str, since: datetime) -> list[schema.RunGroup]:
        widest = await self._reports.widest(team, since, MAX_DISAGREEMENTS)
        return await self._groups.summaries(team, widest)

    async def health(self, caller: Caller, rubric_id: str) -> schema.RubricHealth:
        """Return how the criteria of a rubric do in the team's groups. Raises `NotFound`."""
        rubric = await self._rubrics.find(caller.team, rubric_id)
        if rubric is None:
            raise NotFound(
                f"there is no rubric {rubric_id!r}", code="rubric_not_found", param="rubric_id"
            )
        health = await load_health(self._runs, caller.team, rubric)
        return schema.RubricHealth(
            rubric_id=rubric_id,
            groups=health.groups,
            criteria=[
                schema.CriterionHealth(
                    criterion_id=each.criterion.id,
                    rollouts=_share(each.rollouts),
                    teacher=_share(each.teachers),
                    repeats=list(each.repeats),
                    findings=list(each.findings),
                )
                for each in health.criteria
            ],
            runs=list(health.runs),
        )

    def _report(
        self,
        judge: str,
        name: str | None,
        calls: JudgeCalls,
        unscored: int,
        second: Mapping[str, list[tuple[str, str]]],
        repeats: tuple[int, int] | None,
    ) -> schema.JudgeReport:
        p50, p95 = (_latency(name, share) if name is not None else None for share in (0.5, 0.95))
        agreements = []
        for other, pairs in sorted(second.items()):
            both = agreement(pairs)
            agreements.append(
                schema.JudgeAgreement(
                    second_judge=other,
                    verdicts=both.verdicts,
                    agreement=both.share,
                    kappa=both.kappa,
                    kappa_low=both.low,
                    kappa_high=both.high,
                )
            )
        return schema.JudgeReport(
            name=name,
            judge=judge,
            calls=calls.calls,
            failed_calls=sum(calls.failures.values()),
            failures=calls.failures,
            unscored=unscored,
            latency_p50_s=p50,
            latency_p95_s=p95,
            breaker=_breaker(self._judges[name]) if name is not None else None,
            cost_usd=to_usd(calls.cost),
            unpriced_calls=calls.unpriced_calls,
            cost_per_1000_verdicts_usd=to_usd(calls.cost) / calls.criteria * 1000
            if calls.criteria and not calls.unpriced_calls
            else None,
            agreement=agreements,
            repeats=_repeats(*repeats) if repeats is not None else None,
        )


def _repeats(asked: int, flipped: int) -> schema.JudgeRepeats:
    low, high = wilson(flipped, asked) or (None, None)
    return schema.JudgeRepeats(
        verdicts=asked,
        flipped=flipped,
        share=flipped / asked if asked else None,
        low=low,
        high=high,
    )


def _breaker(judge: Judge) -> Literal["closed", "open", "half_open"] | None:
    """Return the state of the judge's worst endpoint."""
    if judge.gateway is None:
        return None
    worst = max(endpoint.breaker.state for endpoint in judge.gateway.endpoints)
    match worst:
        case BreakerState.OPEN:
            return "open"
        case BreakerState.HALF_OPEN:
            return "half_open"
    return "closed"


def _latency(name: str, share: float) -> float | None:
    """Return a quantile of the seconds of answered verifying calls since this process began.

    It is interpolated within a bucket of the histogram; `None` without calls, or beyond the last.
    """
    labels = {"judge": name, "role": "verifier", "outcome": "ok"}
    counts = {
        float(sample.labels["le"]): sample.value
        for family in metrics.JUDGE_CALL_SECONDS.collect()
        for sample in family.samples
        if sample.name.endswith("_bucket") and labels.items() <= sample.labels.items()
    }
    total = counts.pop(math.inf, 0)
    if not total:
        return None
    below, low = 0.0, 0.0
    for limit, count in sorted(counts.items()):
        if count >= share * total:
            return low + (limit - low) * (share * total - below) / (count - below)
        below, low = count, limit
    return None


def _share(counts: Counts) -> schema.CriterionShare:
    return schema.CriterionShare(met=counts.met, judged=counts.judged, unknown=counts.unknown)
