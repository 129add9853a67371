"""What a scoring request answers: the scores of rollouts and groups, and their sums."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from markscheme import schema
from markscheme.vocabulary import Clamp, UnscoredReason, View
from markscheme_server import metrics, wire
from markscheme_server.accounts.budgets import BUDGET_SPENT
from markscheme_server.domain.reward import feedback, reward, reward_range
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import Verdict
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring.rubrics import ResolvedRubric


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A group's answer, what it cost, and what reuse saved."""

    score: schema.GroupScore
    usage: JudgeUsage
    cached_verdicts: int = 0
    saved_usd: float = 0.0


class Tally:
    """Sums over the groups of a batch."""

    def __init__(self) -> None:
        self.reasons: Counter[UnscoredReason] = Counter()
        self._scored = self._cached_verdicts = 0
        self._saved_usd = 0.0
        self._usage = JudgeUsage()

    def add(self, result: GroupResult) -> None:
        """Count a group."""
        rollouts = result.score.rollouts
        self._scored += sum(rollout.reward is not None for rollout in rollouts)
        self.reasons.update(r.reason for r in rollouts if r.reason is not None)
        self._usage += result.usage
        self._cached_verdicts += result.cached_verdicts
        self._saved_usd += result.saved_usd
        if result.score.rubric is not None:
            metrics.RUBRICS.labels(origin=result.score.rubric.origin).inc()

    def counts(self) -> schema.ScoreCounts:
        """Return how many rollouts were scored."""
        unscored = self.reasons.total()
        return schema.ScoreCounts(
            rollouts=self._scored + unscored, scored=self._scored, unscored=unscored
        )

    def cost(self) -> schema.Usage:
        """Return what the batch cost and what reuse saved."""
        return wire.from_usage(
            self._usage, cached_verdicts=self._cached_verdicts, saved_usd=self._saved_usd
        )


def rollout_score(
    rubric: Rubric,
    rollout_id: str,
    verdicts: Mapping[str, Verdict],
    clamp: Clamp,
    view: View,
    tokens: tuple[int, int],
) -> schema.RolloutScore:
    """Return a rollout's reward and verdicts. `tokens`: shown to the judge, and left out."""
    value = reward(rubric.criteria, verdicts, clamp)
    reason: UnscoredReason | None = None
    if value is None:
        reasons = (verdicts[c.id].reason for c in rubric.criteria)
        reason = next((r for r in reasons if r is not None), UnscoredReason.NOT_APPLICABLE)
    return schema.RolloutScore(
        id=rollout_id,
        reward=value,
        status="unscored" if value is None else "scored",
        reason=reason,
        verdicts=[wire.from_verdict(verdicts[c.id]) for c in rubric.criteria],
        feedback=feedback(rubric.criteria, verdicts),
        view=view,
        shown_tokens=tokens[0],
        left_out_tokens=tokens[1],
    )


def unscored_rollout(rollout: schema.Rollout, reason: UnscoredReason) -> schema.RolloutScore:
    """Return a rollout whose reward is null, with the reason."""
    return schema.RolloutScore(
        id=rollout.id, reward=None, status="unscored", reason=reason, verdicts=[], feedback=[]
    )


def group_score(
    group: schema.Group,
    resolved: ResolvedRubric,
    scores: list[schema.RolloutScore],
    teacher: schema.TeacherScore | None,
    clamp: Clamp,
) -> schema.GroupScore:
    """Return a group with its rubric and the scores of its rollouts."""
    known = sum(score.reward is not None for score in scores)
    status: Literal["scored", "partial", "unscored"] = (
        "scored" if known == len(scores) else "partial" if known else "unscored"
    )
    rubric = resolved.rubric
    least, greatest = reward_range(rubric.criteria, clamp)
    # The group itself reports a spent budget only if all of its rollouts do (decision 16).
    is_spent = all(score.reason is UnscoredReason.BUDGET for score in scores)
    return schema.GroupScore(
        id=group.id,
        status=status,
        error=_error(UnscoredReason.BUDGET, BUDGET_SPENT) if is_spent else None,
        reward_range=schema.RewardRange(min=least, max=greatest),
        teacher=teacher,
        rollouts=scores,
        rubric=schema.RubricRef(
            id=rubric.id,
            version=rubric.version,
            content_hash=rubric.content_hash,
            origin=resolved.origin,
            team=rubric.team,
            criteria=wire.from_criteria(rubric.criteria),
        ),
    )


def unscored_group(group: schema.Group, failure: JudgeFailure) -> schema.GroupScore:
    """Return a group without a rubric: every reward is null with the reason."""
    return schema.GroupScore(
        id=group.id,
        status="unscored",
        rubric=None,
        teacher=None,
        error=_error(failure.reason, str(failure)),
        rollouts=[
            unscored_rollout(rollout, UnscoredReason(failure.reason)) for rollout in group.rollouts
        ],
    )


def _error(reason: UnscoredReason, message: str) -> schema.ErrorDetail:
    if reason is UnscoredReason.BUDGET:
        return schema.ErrorDetail(
            message=message, type="insufficient_quota", code="insufficient_quota"
        )
    return schema.ErrorDetail(message=message, type="judge_error", code=reason.value)
