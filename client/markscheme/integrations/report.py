"""A batch's scores in the order of the trainer's rows, and its metrics."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markscheme.errors import MarkschemeError
from markscheme.schema import GroupScore, ScoreBatch, ScoreCounts, Usage
from markscheme.vocabulary import TRANSIENT_REASONS, View

MAX_CRITERIA = 40
"""A batch with more criteria than this logs none of them as a metric."""
NAME_LENGTH = 48
"""Characters of a criterion's text in the name of its metric."""


class Unscored(MarkschemeError):
    """Too much of a batch has no reward to learn from.

    Attributes:
        reasons: Unscored rollouts by reason.
        may_pass: Whether enough of the batch may get a reward by waiting alone.
    """

    def __init__(self, message: str, *, reasons: Mapping[str, int], may_pass: bool) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)
        self.may_pass = may_pass


@dataclass(frozen=True, slots=True)
class CriterionRate:
    """How many scored rollouts of a group met one criterion."""

    group: str
    rubric: str
    criterion: str
    text: str
    category: str
    points: int
    met: int
    judged: int


@dataclass(frozen=True, slots=True)
class RowScore:
    """The service's score of one rollout.

    Attributes:
        reward: `None` where unknown.
        truncated: Whether the rollout hit the token limit.
        feedback: The criteria that it missed.
        view: What of it was judged; `None` where nothing was.
        left_out_tokens: How much of that the judge was not shown, estimated.
    """

    reward: float | None
    truncated: bool
    feedback: tuple[str, ...] = ()
    view: View | None = None
    left_out_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RewardReport:
    """The answer of one call to the service, without prompts and rollouts.

    Attributes:
        step: Training step, from 0.
        rewards: One per row of all processes; `None` where unknown.
        row_scores: The same rows with truncation, feedback and view.
        teacher_scores: For each row the rewards of its group's teacher responses, if they were
            asked for.
        reasons: Unscored rollouts by reason.
        origins: Groups by the origin of their rubric.
        criteria: How often each criterion was met.
        usage: What the call cost.
        seconds: How long the trainer waited for it.
    """

    step: int
    rewards: list[float | None]
    row_scores: list[RowScore]
    teacher_scores: list[list[float | None]]
    reasons: dict[str, int]
    origins: dict[str, int]
    criteria: list[CriterionRate]
    usage: Usage
    seconds: float

    @property
    def unscored(self) -> int:
        """Rows without a reward."""
        return sum(reward is None for reward in self.rewards)

    def raise_if_unscored(self, share: float) -> None:
        """Raise `Unscored` when more than `share` (0 to 1) of the batch has no reward.

        Waiting helps if the reasons that do not pass would alone leave enough rewards to go on.
        """
        limit = share * len(self.rewards)
        if self.unscored > limit:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
            permanent = sum(
                count for reason, count in self.reasons.items() if reason not in TRANSIENT_REASONS
            )
            raise Unscored(
                f"{self.unscored} of {len(self.rewards)} rollouts of step {self.step + 1} "
                f"are unscored ({why}); the step was not taken",
                reasons=self.reasons,
                may_pass=permanent <= limit,
            )

    def log(self, log_metric: Callable[[str, float], None]) -> None:
        """Pass the batch's metrics to a trainer."""
        usage = self.usage
        log_metric("rubric/unscored_rate", self.unscored / max(1, len(self.rewards)))
        log_metric("rubric/wait_s", self.seconds)
        log_metric("rubric/judge_calls", usage.judge_calls)
        log_metric("rubric/judge_tokens", usage.prompt_tokens + usage.completion_tokens)
        if usage.cost_usd is not None:
            log_metric("rubric/judge_cost_usd", usage.cost_usd)
        log_metric("rubric/left_out_tokens", sum(row.left_out_tokens for row in self.row_scores))
        for origin in ("induced", "reused", "given", "none"):
            log_metric(
                f"rubric/origin_{origin}",
                self.origins.get(origin, 0) / max(1, sum(self.origins.values())),
            )
        judged: Counter[str] = Counter()
        met: Counter[str] = Counter()
        for rate in self.criteria:
            judged[rate.category] += rate.judged
            met[rate.category] += rate.met
        for category in sorted(judged):
            if judged[category]:
                log_metric(f"rubric/met_{category}", met[category] / judged[category])
        for name, share in self.criterion_shares().items():
            log_metric(f"rubric/criterion/{name}", share)

    def criterion_shares(self) -> dict[str, float]:
        """Return the share of rollouts that met each criterion, by a name made of its text.

        A text that several rubrics have is one criterion. Empty if there are more than
        `MAX_CRITERIA`: trackers draw a chart for each name.
        """
        judged: Counter[str] = Counter()
        met: Counter[str] = Counter()
        for rate in self.criteria:
            judged[rate.text] += rate.judged
            met[rate.text] += rate.met
        if len(judged) > MAX_CRITERIA:
            return {}
        return {_metric_name(text): met[text] / count for text, count in judged.items() if count}


def _metric_name(text: str) -> str:
    """Return a criterion's text in letters, digits and underscores, which every tracker takes.

    A hash keeps apart long texts that begin alike.
    """
    name = re.sub(r"\W+", "_", text.lower()).strip("_")
    if name and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{name[:NAME_LENGTH].rstrip('_')}_{digest}".lstrip("_")


def origins(batch: ScoreBatch) -> dict[str, int]:
    """Count groups by the origin of their rubric; `none` where there is none."""
    return dict(Counter(group.rubric.origin if group.rubric else "none" for group in batch.groups))


def criterion_rates(groups: Sequence[GroupScore]) -> list[CriterionRate]:
    """Count for each criterion of each group how many rollouts met it."""
    rates = []
    for group in groups:
        if group.rubric is None:
            continue
        for criterion in group.rubric.criteria:
            verdicts = [
                verdict.met
                for rollout in group.rollouts
                for verdict in rollout.verdicts
                if verdict.criterion_id == criterion.id and verdict.met is not None
            ]
            rates.append(
                CriterionRate(
                    group=group.id,
                    rubric=group.rubric.id,
                    criterion=criterion.id or "",
                    text=criterion.text,
                    category=criterion.category,
                    points=criterion.points,
                    met=sum(verdicts),
                    judged=len(verdicts),
                )
            )
    return rates


def merged_batches(batches: Sequence[ScoreBatch]) -> ScoreBatch:
    """Return the answers to several requests as one."""
    counts = [batch.counts for batch in batches]
    return ScoreBatch(
        groups=[group for batch in batches for group in batch.groups],
        counts=ScoreCounts.model_validate(
            {
                name: sum(getattr(count, name) for count in counts)
                for name in ScoreCounts.model_fields
            }
        ),
        usage=merged_usage([batch.usage for batch in batches]),
    )


def merged_usage(usages: Sequence[Usage]) -> Usage:
    """Return what several requests cost; a sum is `None` where a part of it is not known."""
    sums = {}
    for name in Usage.model_fields:
        parts = [getattr(usage, name) for usage in usages]
        sums[name] = None if None in parts else sum(parts)
    return Usage.model_validate(sums)
