"""Judges of the tasks that know the right answers: functions in this process, no service.

What they differ in is what an arm's reward is made of. All record the share of right answers, which
is what arms are compared by, whatever their reward.
"""

import random
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from markscheme.schema import (
    Criterion,
    Group,
    GroupScore,
    Rollout,
    RolloutScore,
    RubricRef,
    ScoreBatch,
    ScoreCounts,
    Usage,
)
from training.tasks import LENGTH, Task

Scale = Literal["verdict", "rubric", "noisy-rubric", "rating", "calibrated-rating"]
"""What a reward is.

- `verdict`: 1 for the right answer, else 0.
- `rubric`: the share of six criteria that are met, "value n is v"; missed ones are feedback.
- `noisy-rubric`: the same, with each verdict wrong in one of 20 cases.
- `rating`: one number from 0 to 10, by a judge with a scale and an offset of its own, which differ
  by seed; its noise is as large as that of the noisy rubric's score.
- `calibrated-rating`: the same number without scale and offset.
"""
FLIPPED = 0.05
"""Probability that a noisy verdict is wrong."""
RATING_NOISE = (FLIPPED * (1 - FLIPPED) / LENGTH) ** 0.5
"""Standard deviation of the mean of noisy verdicts."""
SPREADS, OFFSETS = (0.4, 0.7), (0.1, 0.3)
"""What a judge's scale and offset are drawn from: the best answer gets between .5 and 1."""


class Grader:
    """Scores rollouts of a task.

    Args:
        task: The task.
        scale: What its rewards are.
        seed: Decides noise and the judge's own scale.

    Attributes:
        successes: Share of right answers of each batch.
    """

    def __init__(self, task: Task, scale: Scale, seed: int) -> None:
        self._task, self._scale = task, scale
        self._random = random.Random(seed)
        self._spread, self._offset = self._random.uniform(*SPREADS), self._random.uniform(*OFFSETS)
        if scale == "calibrated-rating":
            self._spread, self._offset = 1.0, 0.0
        self.successes: list[float] = []

    def score(self, groups: Sequence[Group], **_options: Any) -> ScoreBatch:
        """Score a batch."""
        right: list[float] = []
        scored = []
        for group in groups:
            answer = self._task.answer_of[str(group.prompt).strip()]
            met = [verdicts(rollout, answer) for rollout in group.rollouts]
            right += [float(all(row)) for row in met]
            scored.append(
                GroupScore(
                    id=group.id,
                    status="scored",
                    error=None,
                    teacher=None,
                    rubric=RubricRef(
                        id="rubric", version=1, content_hash="0", origin="given", criteria=CRITERIA
                    ),
                    rollouts=[
                        self._scored(rollout, row, answer)
                        for rollout, row in zip(group.rollouts, met, strict=True)
                    ],
                )
            )
        self.successes.append(statistics.fmean(right))
        return ScoreBatch(
            groups=scored,
            counts=ScoreCounts(rollouts=len(right), scored=len(right), unscored=0),
            usage=Usage(judge_calls=0, prompt_tokens=0, completion_tokens=0, cached_verdicts=0),
        )

    def _scored(self, rollout: Rollout, met: Sequence[bool], answer: Sequence[str]) -> RolloutScore:
        if self._scale == "noisy-rubric":
            met = [value != (self._random.random() < FLIPPED) for value in met]
        share = sum(met) / LENGTH
        if self._scale == "verdict":
            share = float(all(met))
        elif self._scale in ("rating", "calibrated-rating"):
            noise = self._random.gauss(0, RATING_NOISE)
            share = round(10 * (self._offset + self._spread * share + noise)) / 10
        missed = [
            f"s{slot} {value}"
            for slot, (value, has) in enumerate(zip(answer, met, strict=True))
            if not has
        ]
        return RolloutScore(
            id=rollout.id,
            reward=min(1.0, max(0.0, share)),
            status="scored",
            reason=None,
            feedback=missed if self._scale in ("rubric", "noisy-rubric") else [],
            verdicts=[],
        )


CRITERIA = [Criterion(id="c1", text="It is right.", points=1)]


def verdicts(rollout: Rollout, answer: Sequence[str]) -> list[bool]:
    """Return whether each value is the right one; none is in an answer of another length."""
    said = (rollout.text or "").split()
    if rollout.truncated or len(said) != LENGTH:
        return [False] * LENGTH
    return [one == other for one, other in zip(said, answer, strict=True)]
