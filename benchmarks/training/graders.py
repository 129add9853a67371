"""Judges of the trials that know what is right: functions in this process, no service.

What they differ in is what an arm's reward is made of. All record the share of right answers, which
is what arms are compared by, whatever their reward.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

- `verdict`: 1 if all criteria are met, else 0.
- `rubric`: the weighted share of criteria that are met; missed ones are feedback.
- `noisy-rubric`: the same, with each verdict wrong in one of 20 cases.
- `rating`: one number from 0 to 10, by a judge with a scale and an offset of its own, which differ
  by seed; its noise is as large as that of the noisy rubric's score.
- `calibrated-rating`: the same number without scale and offset.
"""
FLIPPED = 0.05
"""Probability that a noisy verdict is wrong."""
SPREADS, OFFSETS = (0.4, 0.7), (0.1, 0.3)
"""What a judge's scale and offset are drawn from: the best answer gets between .5 and 1."""


@dataclass(frozen=True)
class Judged:
    """A rollout beside its prompt's criteria.

    Attributes:
        right: Whether it is right, whatever the criteria say.
        met: Which criteria it meets.
        points: Their weights.
        texts: What the self-teacher reads of those that are missed.
    """

    right: bool
    met: Sequence[bool]
    points: Sequence[float]
    texts: Sequence[str]

    @property
    def share(self) -> float:
        """The weighted share of criteria that are met."""
        return weighted_share(self.met, self.points)


Judge = Callable[[str, Rollout], Judged]
"""Judges a rollout of a prompt."""


class Grader:
    """Scores rollouts.

    Args:
        judge: Knows what is right.
        scale: What the rewards are.
        seed: Decides noise and the judge's own scale.

    Attributes:
        successes: Share of right answers of each batch.
    """

    def __init__(self, judge: Judge, scale: Scale, seed: int) -> None:
        self._judge, self._scale = judge, scale
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
            judged = [self._judge(text_of(group), rollout) for rollout in group.rollouts]
            right += [float(each.right) for each in judged]
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
                        self._scored(rollout, each)
                        for rollout, each in zip(group.rollouts, judged, strict=True)
                    ],
                )
            )
        self.successes.append(statistics.fmean(right))
        return ScoreBatch(
            groups=scored,
            counts=ScoreCounts(rollouts=len(right), scored=len(right), unscored=0),
            usage=Usage(judge_calls=0, prompt_tokens=0, completion_tokens=0, cached_verdicts=0),
        )

    def _scored(self, rollout: Rollout, judged: Judged) -> RolloutScore:
        met = list(judged.met)
        if self._scale == "noisy-rubric":
            met = [value != (self._random.random() < FLIPPED) for value in met]
        share = weighted_share(met, judged.points)
        if self._scale == "verdict":
            share = float(all(met))
        elif self._scale in ("rating", "calibrated-rating"):
            noise = self._random.gauss(0, rating_noise(judged.points))
            share = round(10 * (self._offset + self._spread * share + noise)) / 10
        missed = [text for text, value in zip(judged.texts, met, strict=True) if not value]
        return RolloutScore(
            id=rollout.id,
            reward=min(1.0, max(0.0, share)),
            status="scored",
            reason=None,
            feedback=missed if self._scale in ("rubric", "noisy-rubric") else [],
            verdicts=[],
        )


CRITERIA = [Criterion(id="c1", text="It is right.", points=1)]


def weighted_share(met: Sequence[bool], points: Sequence[float]) -> float:
    """Return the share of points whose criteria are met."""
    return sum(each for each, has in zip(points, met, strict=True) if has) / sum(points)


def rating_noise(points: Sequence[float]) -> float:
    """Return the standard deviation of the weighted mean of noisy verdicts."""
    squares = sum(weight**2 for weight in points)
    return (FLIPPED * (1 - FLIPPED) * squares) ** 0.5 / sum(points)


def text_of(group: Group) -> str:
    """Return the text of a group's prompt: of its last message, in a chat."""
    prompt = group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content
    return str(prompt).strip()


def judge_of(task: Task) -> Judge:
    """Return the judge of a task; its six criteria are "value n is v"."""

    def judge(prompt: str, rollout: Rollout) -> Judged:
        answer = task.answer_of[prompt]
        met = verdicts(rollout, answer)
        texts = [f"s{slot} {value}" for slot, value in enumerate(answer)]
        return Judged(all(met), met, [1] * LENGTH, texts)

    return judge


def verdicts(rollout: Rollout, answer: Sequence[str]) -> list[bool]:
    """Return whether each value is the right one; none is in an answer of another length."""
    said = (rollout.text or "").split()
    if rollout.truncated or len(said) != LENGTH:
        return [False] * LENGTH
    return [one == other for one, other in zip(said, answer, strict=True)]
