"""Runs as the service answers them, made without a database: any size, any fault."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any

from markscheme import schema
from markscheme.schema import CriterionShare
from markscheme.vocabulary import UnscoredReason

START = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)></main></script><script>alert(2)</script>\"'&{{7*7}}\u202e"
"""Text that must stay text wherever it is shown."""
STATEMENTS = (
    "Answers the question that was asked within the first two sentences.",
    "States the 30-day refund window correctly.",
    "Names the exact next step that the customer has to take.",
    "Promises nothing that the policy does not say.",
    "Asks at most one clarifying question. Counts only for a reply of five words or more.",
    "Calls the product what the customer calls it.",
    "Ends with an offer of further help.",
    "Is polite in tone.",
    "Closes with a friendly sentence.",
    "Explains why the policy applies to this case.",
    "Weighs the customer's special circumstances.",
    "Keeps apart what is known and what is assumed.",
)
CATEGORIES = ("task_fulfilment", "observable_quality", "general_reasoning")
ROLLOUTS = 8


def added(criteria: Sequence[schema.CriterionHistory]) -> schema.CategoryHistory:
    """Return the sum of criteria of one category that were asked in the same spans."""

    def total(shares: Iterable[CriterionShare]) -> dict[str, int]:
        listed = list(shares)
        return {
            name: sum(getattr(each, name) for each in listed)
            for name in ("met", "judged", "unknown")
        }

    return schema.CategoryHistory(
        category=criteria[0].category,
        criteria=len(criteria),
        total=CriterionShare(**total(c.total for c in criteria)),
        first=CriterionShare(**total(c.first for c in criteria)),
        now=CriterionShare(**total(c.now for c in criteria)),
        teacher=CriterionShare(**total(c.teacher for c in criteria)),
        spans=[
            schema.CriterionSpan(
                first_step=spans[0].first_step, last_step=spans[0].last_step, **total(spans)
            )
            for spans in zip(*(c.spans for c in criteria), strict=True)
        ],
    )


@dataclass(frozen=True)
class MadeRun:
    """A run of `steps` steps, 4 groups of 8 rollouts a step.

    `outage`: steps, first and last, whose rewards are all unknown. `text` replaces every text that
    a caller chose.
    """

    steps: int = 1000
    criteria: int = 12
    outage: tuple[int, int] | None = (410, 429)
    teacher: bool = True
    second_judge: bool = True
    text: str | None = None
    id: str = "support-7b-ropd-4"
    first_step: int = 0
    bins: int = 200
    findings: tuple[schema.Finding, ...] = field(default=())

    def reward(self, step: float) -> float:
        share = step / max(1, self.steps - 1)
        return 0.42 + 0.3 * share + 0.03 * math.sin(step * 1.7)

    def is_out(self, step: float) -> bool:
        return self.outage is not None and self.outage[0] <= step <= self.outage[1]

    def words(self, usual: str) -> str:
        return self.text or usual

    @property
    def span_of(self) -> int:
        return max(1, math.ceil(self.steps / self.bins))

    def step_list(self) -> schema.StepList:
        spans = []
        for start in range(0, self.steps, self.span_of):
            end = min(self.steps, start + self.span_of) - 1
            middle, out = (start + end) / 2, self.is_out(start) and self.is_out(end)
            mean = None if out else self.reward(middle)
            rollouts = 4 * ROLLOUTS * (end - start + 1)
            spans.append(
                schema.StepSpan(
                    first_step=start + self.first_step,
                    last_step=end + self.first_step,
                    groups=4 * (end - start + 1),
                    rollouts=rollouts,
                    unscored=rollouts if out else 0,
                    reasons={"unavailable": rollouts} if out else {},
                    truncated=0,
                    reward=mean,
                    low=None if mean is None else mean - 0.21,
                    high=None if mean is None else mean + 0.23,
                    teacher=0.86 if self.teacher and not out else None,
                    second_judge=None
                    if out or not self.second_judge
                    else mean - 0.1 * middle / self.steps,
                    words=60 + 60 * middle / self.steps,
                    length_reward=None if out else 0.4 * math.tanh(middle / self.steps * 3 - 1),
                    flat_groups=0 if out else 1,
                    comparable_groups=0 if out else 4 * (end - start + 1),
                    metrics={self.words("kl"): 0.01},
                )
            )
        return schema.StepList(first_step=self.first_step if spans else None, data=spans)

    def criterion_list(self) -> schema.CriterionList:
        size = max(1, math.ceil(self.steps / 100))
        found = []
        for c in range(self.criteria):
            spans = []
            for start in range(0, self.steps, size):
                end = min(self.steps, start + size) - 1
                if self.is_out(start) and self.is_out(end):
                    spans.append(
                        schema.CriterionSpan(
                            first_step=start + self.first_step,
                            last_step=end + self.first_step,
                            met=0,
                            judged=0,
                            unknown=32 * (end - start + 1),
                        )
                    )
                    continue
                judged = 32 * (end - start + 1)
                share = 0.5 + 0.45 * math.sin(c + 2.5 * start / max(1, self.steps))
                spans.append(
                    schema.CriterionSpan(
                        first_step=start + self.first_step,
                        last_step=end + self.first_step,
                        met=round(judged * min(1.0, max(0.0, share))),
                        judged=judged,
                    )
                )
            known = [s for s in spans if s.judged]
            none = CriterionShare(met=0, judged=0)
            first, now = (known[0], known[-1]) if known else (none, none)
            found.append(
                schema.CriterionHistory(
                    key=f"{c:064x}",
                    criterion_id=f"c{c + 1}",
                    text=self.words(STATEMENTS[c % len(STATEMENTS)]),
                    category=CATEGORIES[c * 3 // self.criteria],
                    points=float(1 + c % 5),
                    rubrics=["rub_1", "rub_2"] if c == 0 else ["rub_1"],
                    total=CriterionShare(
                        met=sum(s.met for s in spans), judged=sum(s.judged for s in spans)
                    ),
                    first=CriterionShare(met=first.met, judged=first.judged),
                    now=CriterionShare(met=now.met, judged=now.judged),
                    teacher=CriterionShare(met=9, judged=11) if self.teacher else none,
                    spans=spans,
                    findings=["inverted"] if c == 6 else ["saturated"] if c == 7 else [],
                )
            )
        return schema.CriterionList(
            first_step=self.first_step if self.steps else None,
            last_step=self.first_step + self.steps - 1 if self.steps else None,
            categories=[
                added([c for c in found if c.category == category])
                for category in CATEGORIES
                if any(c.category == category for c in found)
            ],
            data=found,
            total=self.criteria,
            has_more=False,
        )

    def finding_list(self) -> schema.FindingList:
        def made(kind: Any, level: Any, sentence: str, **groups: Any) -> schema.Finding:
            return schema.Finding(
                kind=kind,
                level=level,
                sentence=self.words(sentence),
                since_step=561,
                criterion=None,
                values={},
                groups=schema.GroupFilter(**groups),
            )

        return schema.FindingList(
            data=[
                made(
                    "judges_part",
                    "alarm",
                    "The judges part. Since step 561 the judge's reward moved by −0.03, the "
                    "second judge's by −0.13 on the same rollouts.",
                    sort="disagreement",
                ),
                made(
                    "inverted",
                    "alarm",
                    "Inverted. Students meet “Ends with an offer of further help” in 98 % of "
                    "rollouts, teachers in 41 %.",
                    criterion=f"{6:064x}",
                ),
                made(
                    "unknown",
                    "watch",
                    "Rewards are not known. 640 rollouts of steps 411 to 430 have none: the judge "
                    "was unavailable.",
                    first_step=410,
                    last_step=429,
                    sort="unknown",
                ),
            ]
            if self.steps > 1 and self.criteria
            else []
        )

    def detail(self, **changes: Any) -> schema.RunDetail:
        spans = self.step_list().data
        rollouts = sum(s.rollouts for s in spans)
        unscored = sum(s.unscored for s in spans)
        known = [s for s in spans if s.reward is not None]
        values: dict[str, Any] = {
            "id": self.words(self.id),
            "team": "default",
            "state": "running",
            "reason": None,
            "facts": {
                "student": self.words("Qwen3-8B"),
                "preset": "ropd",
                "learning rate": 1e-6,
                "lora": True,
            },
            "steps": 2 * self.steps or None,
            "first_step": self.first_step if spans else None,
            "last_step": self.first_step + self.steps - 1 if spans else None,
            "created_at": START,
            "last_scored_at": START + timedelta(hours=9) if spans else None,
            "groups": 4 * self.steps,
            "rollouts": rollouts,
            "unscored": unscored,
            "reward_first": known[0].reward if known else None,
            "reward_now": known[-1].reward if known else None,
            "teacher": 0.86 if self.teacher and known else None,
            "curve": [s.reward for s in spans[:: max(1, len(spans) // 40)]][:40],
            "cost_usd": 15.046123456789,
            "saved_usd": 3.2,
            "unpriced_calls": 0,
            "findings": schema.FindingCounts(alarm=2, watch=1),
            "reasons": {"unavailable": unscored} if unscored else {},
            "judges": [self.words("openai/qwen3-32b@5f2c9a1b03de")],
            "rubrics": 1,
            "truncated": 12,
            "flat_groups": sum(s.flat_groups for s in spans),
            "comparable_groups": sum(s.comparable_groups for s in spans),
            "second_judge": 1920 if self.second_judge else 0,
            "second_judge_now": 0.5312345678 if self.second_judge else None,
            "projected_usd": 30.1,
            "pruned_until": None,
        }
        return schema.RunDetail(**(values | changes))

    def summary(self, **changes: Any) -> schema.RunSummary:
        detail = self.detail(**changes)
        return schema.RunSummary(
            **{name: getattr(detail, name) for name in schema.RunSummary.model_fields}
        )

    def group_list(self, count: int = 50) -> schema.RunGroupList:
        count = min(count, 4 * self.steps)
        return schema.RunGroupList(
            first_step=self.first_step,
            has_more=4 * self.steps > count,
            data=[
                schema.RunGroup(
                    id=f"asg_{i:04d}",
                    group_id=self.words(f"s{self.steps - 1 - i // 4}-p{i % 4}"),
                    step=self.first_step + self.steps - 1 - i // 4,
                    created_at=START,
                    prompt=self.words(f"The courier says delivered, I say not. Who pays? ({i})"),
                    rubric_id="rub_1",
                    judge="openai/qwen3-32b@5f2c9a1b03de",
                    mean=0.6 + i / 1000,
                    spread=0.51,
                    teacher=0.86 if self.teacher else None,
                    words=123.4,
                    unscored=1 if i == 2 else 0,
                    rollouts=[
                        schema.RolloutPoint(
                            id=f"r{r}",
                            reward=None if i == 2 and r == 7 else min(1.0, 0.2 + 0.1 * r + i / 999),
                            reason=UnscoredReason.UNAVAILABLE if i == 2 and r == 7 else None,
                            truncated=False,
                            words=100 + r,
                        )
                        for r in range(ROLLOUTS)
                    ],
                )
                for i in range(count)
            ],
        )


def made_comparison(
    runs: Sequence[MadeRun], *, prompts: int = 30, has_more: bool = True
) -> schema.RunComparison:
    """Compare runs, each a little worse than the one before.

    Of the last run the first prompt is not known, and the second is not there.
    """
    listed = [run.step_list().data for run in runs]
    criteria = [run.criterion_list() for run in runs]
    unknown = schema.ComparedReward(reward=None, rollouts=0, unscored=0)

    def mean(value: float, low: float, high: float) -> schema.MeanInterval:
        known = prompts > 0
        return schema.MeanInterval(
            value=value if known else None, low=low if known else None, high=high if known else None
        )

    def group(run: int, prompt: int) -> schema.PromptGroup | None:
        if run and run == len(runs) - 1 and prompt == 1:
            return None
        return schema.PromptGroup(
            id=f"asg_{run}{prompt:03d}",
            step=runs[run].steps - 1,
            rubric_id="rub_2" if run == 1 and prompt == 2 else "rub_1",
            judge="openai/qwen3-32b@5f2c9a1b03de",
            mean=None
            if run and run == len(runs) - 1 and prompt == 0
            else 0.7012345678 - 0.0411111111 * run + 0.002 * run * prompt,
        )

    return schema.RunComparison(
        runs=[run.summary() for run in runs],
        spans=[
            schema.ComparedSpan(
                first_step=spans[longest].first_step + 1,
                last_step=spans[longest].last_step + 1,
                runs=[
                    schema.ComparedReward(
                        reward=None if each.reward is None else each.reward - 0.04 * number,
                        rollouts=each.rollouts,
                        unscored=each.unscored,
                    )
                    if each is not None
                    else unknown
                    for number, each in enumerate(spans)
                ],
            )
            for spans in zip_longest(*listed)
            for longest in [next(i for i, each in enumerate(spans) if each is not None)]
        ],
        differences=[
            schema.RunDifference(
                run=run.words(run.id),
                prompts=prompts,
                unknown=1,
                first=0.7012345678 if prompts else None,
                reward=0.6601234567 if prompts else None,
                difference=mean(-0.0411111111 * number, -0.0712345678, -0.0109876543),
                same_rubric=prompts,
                same_rubric_difference=mean(-0.0398765432, -0.0701234567, -0.0098765432),
            )
            for number, run in enumerate(runs)
            if number
        ],
        categories=[
            schema.ComparedCategory(
                category=each.category,
                criteria=[each.criteria] * len(runs),
                now=[each.now] * len(runs),
            )
            for each in criteria[0].categories
        ],
        criteria=[
            schema.ComparedCriterion(
                key=each.key,
                criterion_id=each.criterion_id,
                text=each.text,
                category=each.category,
                points=each.points,
                rubric_id="rub_1",
                now=[
                    CriterionShare(met=max(0, each.now.met - number), judged=each.now.judged)
                    if each.criterion_id != "c3" or not number
                    else CriterionShare(met=0, judged=0, unknown=4)
                    if each.criterion_id == "c3"
                    else None
                    for number in range(len(runs))
                ],
            )
            for each in criteria[0].data
        ],
        criteria_total=criteria[0].total,
        own_criteria=3,
        prompts=[
            schema.ComparedPrompt(
                prompt_key=f"{i:064x}",
                prompt=runs[0].words(f"The courier says delivered, I say not. Who pays? ({i})"),
                groups=[group(number, i) for number in range(len(runs))],
            )
            for i in range(prompts)
        ],
        prompts_total=2 * prompts,
        pruned_groups=[0] * (len(runs) - 1) + [7],
        has_more=has_more and prompts > 0,
    )


def made_group(
    *,
    rollouts: int = ROLLOUTS,
    criteria: int = 6,
    teachers: int = 1,
    text: str | None = None,
    unknown: bool = False,
    id: str = "asg_0000",
    **changes: Any,
) -> schema.GroupDetail:
    """Make a group; the last rollout's first verdict, and with it its reward, is not known."""
    listed = [
        schema.Criterion(
            id=f"c{c + 1}",
            text=text or STATEMENTS[c % len(STATEMENTS)],
            category=CATEGORIES[c % 3],  # type: ignore[arg-type]
            points=1 + c % 5,
        )
        for c in range(criteria)
    ]

    def response(name: str, order: int, *, known: bool = True, **more: Any) -> schema.GroupResponse:
        said = (
            text
            if text is not None
            else (
                "Unfortunately the headphones can no longer be returned: the window is\n30 days "
                "from delivery. A fault like this is covered by the guarantee. 4 commas are here."
            )
        )
        verdicts = [
            schema.GroupVerdict(
                criterion_id=f"c{c + 1}",
                met=None if not known and c == 0 else (c + order) % 3 != 0,
                applicable=True,
                evidence=(
                    text or ("the window is 30 DAYS", "covered by the guarantee", "4 commas")
                )[c % 3]
                if text is None and (c + order) % 3 != 0
                else text,
                evidence_is_quotation=c % 3 != 2,
                rationale=text or "It says so.",
                second_judge_met=(c + order) % 3 == 0 if c == order % max(1, criteria) else None,
            )
            for c in range(criteria)
        ]
        reward = None if not known else max(0.04, 0.96 - 0.12345678912 * order)
        return schema.GroupResponse(
            **(
                {
                    "id": name,
                    "text": said,
                    "thought": text,
                    "messages": None,
                    "truncated": order == 2,
                    "reward": reward,
                    "advantage": None if reward is None else reward - 0.49,
                    "reason": None if known else UnscoredReason.UNAVAILABLE,
                    "words": 96,
                    "verdicts": verdicts,
                    "second_judge_reward": 0.5 if order == 1 else None,
                }
                | more
            )
        )

    students = [
        response(
            (text or "") + f"r{r}", r, known=not unknown and (r < rollouts - 1 or rollouts == 1)
        )
        for r in range(rollouts)
    ]
    known = [r.reward for r in students if r.reward is not None]
    values: dict[str, Any] = {
        "id": id,
        "group_id": text or "s999-c1-p1",
        "run_id": text or "support-7b-ropd-4",
        "step": 999,
        "first_step": 0,
        "created_at": START,
        "reuse": "frozen",
        "verify": "rollout",
        "prompt": [schema.Message(role="user", content=text or "Can I still send them back?")],
        "rubric": schema.RubricRef(
            id="rub_1", version=3, content_hash="0" * 64, origin="reused", criteria=listed
        ),
        "criteria": listed,
        "judge": text or "openai/qwen3-32b@5f2c9a1b03de",
        "second_judge": text or "openai/gemma@5f2c9a1b03de",
        "mean": sum(known) / len(known) if known else None,
        "spread": max(known) - min(known) if known else None,
        "cached_verdicts": 3,
        "saved_usd": 0.0005,
        "rollouts": students,
        "teachers": [response("t", 0) for _ in range(teachers)],
        "previous_id": "asg_0001",
        "next_id": "asg_0002",
    }
    return schema.GroupDetail(**(values | changes))


def judge_reports(text: str | None = None) -> schema.JudgeReports:
    """Make the report of two judges."""

    def made(name: str | None, **changes: Any) -> schema.JudgeReport:
        values: Mapping[str, Any] = {
            "name": text or name,
            "judge": text or "openai/qwen3-32b@5f2c9a1b03de",
            "calls": 32_000,
            "failed_calls": 320,
            "failures": {text or "unavailable": 300, "timeout": 20},
            "unscored": 640,
            "latency_p50_s": 1.2345678901,
            "latency_p95_s": 4.5,
            "breaker": "closed",
            "cost_usd": 15.046123,
            "unpriced_calls": 0,
            "cost_per_1000_verdicts_usd": 0.0394,
            "agreement": [
                schema.JudgeAgreement(
                    second_judge=text or "openai/gemma@5f2c9a1b03de",
                    verdicts=5000,
                    agreement=0.91,
                    kappa=0.7712345678,
                    kappa_low=0.74,
                    kappa_high=0.80,
                )
            ],
            "repeats": schema.JudgeRepeats(
                verdicts=200, flipped=9, share=0.045, low=0.024, high=0.083
            ),
        }
        return schema.JudgeReport(**(dict(values) | changes))

    return schema.JudgeReports(
        data=[
            made("default"),
            made(
                None,
                calls=0,
                failed_calls=0,
                failures={},
                latency_p50_s=None,
                latency_p95_s=None,
                breaker=None,
                cost_per_1000_verdicts_usd=None,
                agreement=[],
                repeats=None,
                unpriced_calls=4,
            ),
        ],
        disagreements=MadeRun(steps=3, text=text).group_list(3).data,
    )


REPLAYS: Mapping[str, Mapping[str, Any]] = {
    "rpl_differs": {},
    "rpl_running": {"state": "running", "done": 12, "skipped": 0},
    "rpl_queued": {"state": "queued", "done": 0},
    "rpl_paused": {"state": "paused", "done": 12, "reason": "the team's budget is spent"},
    "rpl_failed": {"state": "failed", "done": 0, "reason": "there is no judge 'second' any more"},
}
"""Replays by id, with what is not as in the first, which is finished and differs from its run."""


def made_replay(id: str = "rpl_differs", text: str | None = None) -> schema.ReplayDetail:
    """Make one of `REPLAYS`. One that has done no group has no figures."""
    values: dict[str, Any] = {
        "id": id,
        "run_id": text or "support-7b-ropd-4",
        "rubric_id": text or "rub_2",
        "judge": text or "second",
        "view": "reply",
        "verify": "group",
        "thinking": "auto",
        "clamp": "zero",
        "state": "finished",
        "reason": None,
        "groups": 40,
        "done": 40,
        "skipped": 1,
        "calls": 312,
        "cost_usd": 0.0712345678,
        "unpriced_calls": 2,
        "cached_verdicts": 17,
        "saved_usd": 0.004,
        "created_at": START,
        "changed_at": START + timedelta(minutes=7),
    } | REPLAYS[id]
    if values["reason"] is not None:
        values["reason"] = text or values["reason"]

    def mean(value: float, low: float, high: float) -> schema.MeanInterval:
        if values["done"] == 0:
            return schema.MeanInterval(value=None, low=None, high=None)
        return schema.MeanInterval(value=value, low=low, high=high)

    begun = values["done"] > 0
    flips = [(30, 2, 0.0000012345), (7, 9, 0.8036189), (0, 0, None)]
    return schema.ReplayDetail(
        **values,
        comparison=schema.ReplayComparison(
            rollouts=8 * values["done"],
            unknown_before=3 if begun else 0,
            unknown_after=5 if begun else 0,
            before=0.7012345678 if begun else None,
            after=0.6123456789 if begun else None,
            difference=mean(-0.0888888889, -0.1412345678, -0.0312345678),
            rank_agreement=mean(0.7312345678, 0.61, 0.84),
            rank_groups=38 if begun else 0,
            sign_changes=mean(0.1812345678, 0.12, 0.25),
            criteria=[
                schema.CriterionFlips(
                    key=f"{c:064x}",
                    text=text or STATEMENTS[c],
                    met_before=120 + lost,
                    judged_before=312,
                    met_after=120 + gained if p is not None else 0,
                    judged_after=312 if p is not None else 0,
                    pairs=310 if p is not None else 0,
                    lost=lost,
                    gained=gained,
                    p=p,
                )
                for c, (lost, gained, p) in enumerate(flips)
            ]
            if begun
            else [],
        ),
    )
