"""Compare runs by the rewards of the prompts that they share. Pure.

A prompt that returns every epoch counts once, so that prompts are independent of each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from markscheme_server.domain.replay import Interval, clustered_mean

MIN_PROMPTS = 10
"""Prompts from which on a mean difference has an interval: of fewer, Student's t covers badly."""


class LastGroup(NamedTuple):
    """The last group of a prompt in a run, of those with a known reward if there is one.

    `mean`: of its known rewards.
    """

    id: str
    run_id: str
    prompt_key: str
    step: int
    rubric_id: str
    judge: str | None
    mean: float | None


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt that the first run shares with others.

    `groups`: of each run; `None` where a run has none of the prompt. The first has one.
    """

    key: str
    groups: Sequence[LastGroup | None]

    def difference(self, run: int) -> float | None:
        """Return the mean reward in a run minus that in the first; `None` if one is not known."""
        first, other = self.groups[0], self.groups[run]
        if first is None or other is None or first.mean is None or other.mean is None:
            return None
        return other.mean - first.mean

    def has_same_rubric(self, run: int) -> bool:
        """Return whether a run's group was scored by the rubric and the judge of the first's."""
        first, other = self.groups[0], self.groups[run]
        return (
            first is not None
            and other is not None
            and (first.rubric_id, first.judge) == (other.rubric_id, other.judge)
        )

    @cached_property
    def loss(self) -> tuple[bool, float]:
        """The place in the order of losses: the greatest first, what is not known last."""
        return order_of_loss(self.difference(run) for run in range(1, len(self.groups)))


@dataclass(frozen=True, slots=True)
class RewardDifference:
    """The reward of a run minus that of the first, over prompts that both scored.

    `prompts`: those with a known reward in both; `unknown`: those without. `first` and `other`: the
    means over `prompts`. `same_rubric`: those scored by the same rubric and judge.
    """

    prompts: int
    unknown: int
    first: float | None
    other: float | None
    difference: Interval
    same_rubric: int
    same_rubric_difference: Interval


def order_of_loss(differences: Iterable[float | None]) -> tuple[bool, float]:
    """Return a sort key: the least of the differences, and unknown ones after all others."""
    least = min((each for each in differences if each is not None), default=None)
    return least is None, least or 0.0


def shared_prompts(runs: Sequence[str], groups: Iterable[LastGroup]) -> list[SharedPrompt]:
    """Return the prompts that the first run shares with others, the greatest loss first."""
    place = {run: number for number, run in enumerate(runs)}
    found: dict[str, list[LastGroup | None]] = {}
    for group in groups:
        beside = found.setdefault(group.prompt_key, [None] * len(runs))
        beside[place[group.run_id]] = group
    shared = [
        SharedPrompt(key, beside)
        for key, beside in found.items()
        if beside[0] is not None and any(beside[1:])
    ]
    return sorted(shared, key=lambda prompt: (prompt.loss, prompt.key))


def reward_difference(prompts: Sequence[SharedPrompt], run: int) -> RewardDifference:
    """Return how the rewards of a run differ from those of the first."""
    first: list[float] = []
    other: list[float] = []
    same_rubric: list[float] = []
    unknown = 0
    for prompt in prompts:
        before, after = prompt.groups[0], prompt.groups[run]
        if before is None or after is None:
            continue
        if before.mean is None or after.mean is None:
            unknown += 1
            continue
        first.append(before.mean)
        other.append(after.mean)
        if prompt.has_same_rubric(run):
            same_rubric.append(after.mean - before.mean)
    return RewardDifference(
        prompts=len(first),
        unknown=unknown,
        first=clustered_mean([first]).value,
        other=clustered_mean([other]).value,
        difference=_mean([after - before for before, after in zip(first, other, strict=True)]),
        same_rubric=len(same_rubric),
        same_rubric_difference=_mean(same_rubric),
    )


def _mean(differences: Sequence[float]) -> Interval:
    mean = clustered_mean([[difference] for difference in differences])
    return mean if len(differences) >= MIN_PROMPTS else Interval(mean.value)
