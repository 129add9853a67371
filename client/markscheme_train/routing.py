"""Which rollouts are taught by reward and which by a self-teacher, and what that teacher gets to see.

SRPO (arXiv 2604.02288) routes on a binary reward: a failed rollout whose group holds a success goes to
self-distillation, everything else to GRPO. A rubric's score is continuous. The carry-over here is ours: one threshold
for success, a higher one for what may serve as a demonstration, and a gap between the two rollouts, so that near-ties
are left to the reward. Pure Python: a group is a few numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Branch(StrEnum):
    """Where a rollout's tokens go."""

    GRPO = "grpo"
    SDPO = "sdpo"
    UNSCORED = "unscored"
    """Nowhere: it has no reward."""


TEACHER = -1
"""As a demonstration's index: the external teacher's response."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Per rollout of a group: its branch, and the rollout that demonstrates the task to its self-teacher.

    A demonstration is named for every rollout that has one, also where it is not needed; :data:`TEACHER` stands for
    the teacher's response, ``None`` for no demonstration.
    """

    branches: tuple[Branch, ...]
    demonstrations: tuple[int | None, ...]


def route(
    scores: Sequence[float | None],
    *,
    success: float = 0.5,
    demonstration: float | None = None,
    gap: float = 0.0,
    truncated: Sequence[bool] | None = None,
    feedback: Sequence[bool] | None = None,
    teacher_score: float | None = None,
) -> Routes:
    """Route one group's rollouts by their scores; ``None`` or NaN is a rollout without one.

    A rollout fails below ``success``, or when it was ``truncated``. Its demonstration is the best other rollout that
    scored at least ``demonstration`` (default: ``success``) and at least ``gap`` more, was not cut off, and came first
    among equals; for want of one the teacher's response, when ``teacher_score`` is given and holds to the same terms.
    A failure goes to self-distillation when it has a demonstration or ``feedback`` of its own, else to GRPO.

    With the defaults and rewards of 0 and 1 this is SRPO as published.
    """
    count = len(scores)
    known = [None if score is None or math.isnan(score) else float(score) for score in scores]
    cut = [False] * count if truncated is None else list(truncated)
    told = [False] * count if feedback is None else list(feedback)
    if not len(cut) == len(told) == count:
        raise ValueError("scores, truncated and feedback must be of one length")
    least = success if demonstration is None else demonstration
    branches: list[Branch] = []
    demonstrations: list[int | None] = []
    for own, score in enumerate(known):
        if score is None:
            branches.append(Branch.UNSCORED)
            demonstrations.append(None)
            continue
        shown = _best(known, cut, own, max(least, score + gap) if gap else least)
        if shown is None and teacher_score is not None and teacher_score >= max(least, score + gap):
            shown = TEACHER
        failed = cut[own] or score < success
        branches.append(Branch.SDPO if failed and (shown is not None or told[own]) else Branch.GRPO)
        demonstrations.append(shown)
    return Routes(tuple(branches), tuple(demonstrations))


def _best(
    scores: Sequence[float | None], truncated: Sequence[bool], own: int, least: float
) -> int | None:
    others = [
        (score, -index)
        for index, score in enumerate(scores)
        if index != own and score is not None and not truncated[index] and score >= least
    ]
    return -max(others)[1] if others else None
