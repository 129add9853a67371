"""Counts and sums over the groups of one or more steps of a run.

A figure that is not known is in no sum: it never counts as 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Counts and sums over the groups of one or more steps.

    Attributes:
        first: The first of the steps.
        last: The last.
        groups: Groups.
        rollouts: Their rollouts.
        truncated: Rollouts that hit the token limit.
        comparable: Groups with two or more different texts of known reward.
        flat: Those of them in which all rewards are equal.
        rewards: The known rewards, and `reward_sum` their sum.
        reasons: Rollouts of unknown reward, by reason.
        words: Sum of the known words, and how many are known.
        teacher: Sum of the teachers' known rewards, and how many are known.
        second: Rollouts that both judges scored, the sum of their rewards, and of the second ones.
        length_reward: xx, yy, xy: `group_figures.length_reward` added up.
        metrics: The trainer's own metrics, of each step that has any.
    """

    first: int
    last: int
    groups: int = 0
    rollouts: int = 0
    truncated: int = 0
    comparable: int = 0
    flat: int = 0
    rewards: Sequence[float] = ()
    reward_sum: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    words: tuple[int, int] = (0, 0)
    teacher: tuple[float, int] = (0.0, 0)
    second: tuple[int, float, float] = (0, 0.0, 0.0)
    length_reward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    metrics: Sequence[Mapping[str, float | None]] = ()

    @property
    def unscored(self) -> int:
        """Rollouts of unknown reward."""
        return self.rollouts - len(self.rewards)

    @property
    def reward(self) -> float | None:
        """The mean of the known rewards."""
        return ratio(self.reward_sum, len(self.rewards))

    @property
    def teacher_reward(self) -> float | None:
        """The mean of the teachers' known rewards."""
        return ratio(*self.teacher)

    @property
    def second_reward(self) -> float | None:
        """The mean of the second judge's known rewards."""
        return ratio(self.second[2], self.second[0])

    @property
    def mean_words(self) -> float | None:
        """The mean of the known words of rollouts."""
        return ratio(*self.words)

    @property
    def length_correlation(self) -> float | None:
        """Pearson's correlation of words and reward within groups; `None` if one never varies."""
        xx, yy, xy = self.length_reward
        return max(-1.0, min(1.0, xy / (xx * yy) ** 0.5)) if xx > 0 and yy > 0 else None

    @property
    def mean_metrics(self) -> dict[str, float | None]:
        """The means of the trainer's metrics; `None` also where the sum is out of range."""
        found: dict[str, list[float]] = {}
        for of_step in self.metrics:
            for name, value in of_step.items():
                known = found.setdefault(name, [])
                if value is not None:
                    known.append(value)
        means: dict[str, float | None] = {}
        for name in sorted(found):
            total = sum(found[name])
            means[name] = ratio(total, len(found[name])) if math.isfinite(total) else None
        return means

    def quantiles(self) -> tuple[float, float] | None:
        """Return the 10th and the 90th percentile of the known rewards, interpolated linearly."""
        if not self.rewards:
            return None
        ordered = sorted(self.rewards)
        return _quantile(ordered, 0.1), _quantile(ordered, 0.9)


def ratio(total: float, count: int) -> float | None:
    """Return a mean; `None` of nothing."""
    return total / count if count else None


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
