"""Decide which rollouts learn from their reward and which from the self-teacher.

SRPO (arXiv 2604.02288) routes on a binary reward: a failed rollout whose group holds a success goes
to self-distillation, everything else to GRPO. A rubric's score is continuous, and this extension is
ours: a threshold for success, a higher one for demonstrations, and a minimum gap between the two
rollouts, so that near-ties are left to the reward. Pure Python: a group is a few numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Branch(StrEnum):
    """The loss that a rollout's tokens enter."""

    GRPO = "grpo"
    SDPO = "sdpo"
    UNSCORED = "unscored"
    """None: it has no reward."""


TEACHER = -1
"""Index of a demonstration that is the external teacher's response."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Branch and demonstration of each rollout of a group, and whether it succeeded.

    A demonstration is named for every rollout that has one, also where it is not needed: the index
    of a rollout, `TEACHER` for the teacher's response, or `None`.
    """

    branches: tuple[Branch, ...]
    demonstrations: tuple[int | None, ...]
    successes: tuple[bool, ...]


def route(
    scores: Sequence[float | None],
    *,
    success: float = 0.5,
    demonstration: float | None = None,
    gap: float = 0.0,
    truncated: Sequence[bool] | None = None,
    truncated_fails: bool = False,
    too_short: Sequence[bool] | None = None,
    feedback: Sequence[bool] | None = None,
    teacher_score: float | None = None,
) -> Routes:
    """Route one group's rollouts by their scores.

    A rollout fails below `success`. Its demonstration is the best other rollout that scored at
    least `demonstration` and at least `gap` more; the first one among equals, and a truncated one
    only where no other qualifies. Without one it is the teacher's response, if its score meets the
    same terms. A failure with a demonstration or feedback goes to self-distillation, everything
    else to GRPO.

    With the defaults and rewards of 0 and 1 the branches are those of SRPO as published.

    Args:
        scores: Rewards, at most 1; `None` or NaN where unknown.
        success: Minimum score of a success.
        demonstration: Minimum score of a demonstration; default: `success`.
        gap: Minimum lead of a demonstration over the rollout.
        truncated: Which rollouts hit the token limit.
        truncated_fails: A truncated rollout fails whatever its score, and is no demonstration.
        too_short: Which rollouts are too short to be shown.
        feedback: Which rollouts have feedback.
        teacher_score: Score of the teacher's best response, if it may be shown.

    Raises:
        ValueError: `scores` and one of the lists beside it differ in length.
    """
    count = len(scores)
    values = [None if score is None or math.isnan(score) else float(score) for score in scores]
    is_truncated = [False] * count if truncated is None else list(truncated)
    is_too_short = [False] * count if too_short is None else list(too_short)
    has_feedback = [False] * count if feedback is None else list(feedback)
    if not len(is_truncated) == len(is_too_short) == len(has_feedback) == count:
        raise ValueError("scores, truncated, too_short and feedback must be of one length")
    minimum = success if demonstration is None else demonstration
    shown = [
        None if is_too_short[i] or (is_truncated[i] and truncated_fails) else score
        for i, score in enumerate(values)
    ]
    branches: list[Branch] = []
    demonstrations: list[int | None] = []
    successes: list[bool] = []
    for own, score in enumerate(values):
        if score is None:
            branches.append(Branch.UNSCORED)
            demonstrations.append(None)
            successes.append(False)
            continue
        # With a gap of 0 a demonstration may score less than the failure itself, as in SRPO.
        shown_by = _best(shown, is_truncated, own, max(minimum, score + gap) if gap else minimum)
        if (
            shown_by is None
            and teacher_score is not None
            and teacher_score >= max(minimum, score + gap)
        ):
            shown_by = TEACHER
        failed = score < success or (truncated_fails and is_truncated[own])
        branches.append(
            Branch.SDPO if failed and (shown_by is not None or has_feedback[own]) else Branch.GRPO
        )
        demonstrations.append(shown_by)
        successes.append(not failed)
    return Routes(tuple(branches), tuple(demonstrations), tuple(successes))


def _best(
    scores: Sequence[float | None], truncated: Sequence[bool], own: int, minimum: float
) -> int | None:
    # Negated, so that the first among equals is the largest.
    others = [
        (not truncated[index], score, -index)
        for index, score in enumerate(scores)
        if index != own and score is not None and score >= minimum
    ]
    return -max(others)[-1] if others else None
