"""Compare the rewards of the same rollouts before and after a change. Pure.

Rollouts of a group share a prompt and a rubric, so their differences are not independent: intervals
treat a group as one cluster. A rollout without a reward on one side is left out on both.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markscheme_server.domain.verdict import MET, NOT_MET

_Z975 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_SAME = 1e-9
"""Rewards and advantages that differ by less are equal: they are sums of rounded fractions."""


class Interval(NamedTuple):
    """A mean with its 95 % interval.

    `value` is `None` if nothing is known; `low` and `high` are `None` with fewer than two groups.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ReplayedRollout:
    """One rollout, scored before and after. The verdict strings are in their rubric's order."""

    before: float | None
    after: float | None
    verdicts_before: str
    verdicts_after: str


@dataclass(frozen=True, slots=True)
class ReplayedGroup:
    """A group, scored before and after.

    `criteria_before` and `criteria_after`: the keys of the criteria in their rubric's order.
    """

    rollouts: Sequence[ReplayedRollout]
    criteria_before: Sequence[str]
    criteria_after: Sequence[str]


@dataclass(frozen=True, slots=True)
class CriterionChange:
    """How often a criterion was met before and after, and how often its verdict flipped.

    `pairs`: rollouts whose verdict is known on both sides. `lost`: met before only; `gained`: met
    after only. `p`: McNemar's exact test; `None` without pairs.
    """

    key: str
    met_before: int
    judged_before: int
    met_after: int
    judged_after: int
    pairs: int
    lost: int
    gained: int
    p: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the rewards differ after a change.

    `rollouts`: those with a reward on both sides. `difference`: the mean reward after minus that
    before. `rank_agreement`: the mean over groups of Kendall's tau-b; `rank_groups`: those with a
    spread on both sides. `sign_changes`: share of rollouts whose advantage, the reward minus the
    mean of the group, changes its sign, also from or to 0.
    """

    rollouts: int
    unknown_before: int
    unknown_after: int
    before: float | None
    after: float | None
    difference: Interval
    rank_agreement: Interval
    rank_groups: int
    sign_changes: Interval
    criteria: list[CriterionChange]


def compare(groups: Sequence[ReplayedGroup]) -> Comparison:
    """Compare all groups. The order of groups and rollouts does not matter."""
    differences: list[list[float]] = []
    changes: list[list[float]] = []
    ranks: list[float] = []
    before_sum = after_sum = 0.0
    unknown_before = unknown_after = 0
    for group in groups:
        unknown_before += sum(rollout.before is None for rollout in group.rollouts)
        unknown_after += sum(rollout.after is None for rollout in group.rollouts)
        pairs = [
            (rollout.before, rollout.after)
            for rollout in group.rollouts
            if rollout.before is not None and rollout.after is not None
        ]
        if not pairs:
            continue
        before, after = [one for one, _ in pairs], [other for _, other in pairs]
        before_sum += math.fsum(before)
        after_sum += math.fsum(after)
        differences.append([other - one for one, other in pairs])
        signs = zip(_advantage_signs(before), _advantage_signs(after), strict=True)
        changes.append([float(one != other) for one, other in signs])
        if (tau := kendall_tau_b(before, after)) is not None:
            ranks.append(tau)
    rollouts = sum(map(len, differences))
    return Comparison(
        rollouts=rollouts,
        unknown_before=unknown_before,
        unknown_after=unknown_after,
        before=before_sum / rollouts if rollouts else None,
        after=after_sum / rollouts if rollouts else None,
        difference=_within(clustered_mean(differences), -math.inf, math.inf),
        rank_agreement=_within(clustered_mean([[tau] for tau in ranks]), -1.0, 1.0),
        rank_groups=len(ranks),
        sign_changes=_within(clustered_mean(changes), 0.0, 1.0),
        criteria=criterion_changes(groups),
    )


def clustered_mean(clusters: Sequence[Sequence[float]]) -> Interval:
    """Return the mean of all values, with a 95 % interval that is robust to their clusters.

    The variance is that of Liang and Zeger (1986) with the factor G / (G - 1), and the quantile
    that of Student's t with G - 1 degrees of freedom, where G is the number of clusters.
    """
    clusters = [cluster for cluster in clusters if cluster]
    count = sum(map(len, clusters))
    if not count:
        return Interval(None)
    mean = math.fsum(value for cluster in clusters for value in cluster) / count
    if len(clusters) < 2:
        return Interval(mean)
    squares = math.fsum(math.fsum(value - mean for value in cluster) ** 2 for cluster in clusters)
    error = math.sqrt(squares * len(clusters) / (len(clusters) - 1)) / count
    margin = t975(len(clusters) - 1) * error
    return Interval(mean, mean - margin, mean + margin)


def t975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, exact to 0.2 %.

    One and two degrees of freedom have a closed form; the others take the expansion of Abramowitz
    and Stegun, 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z: float = _Z975
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def kendall_tau_b(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two rankings of the same things, -1 to 1.

    `None` where all values on one side are equal: then there is no ranking.
    """
    agreeing = untied_one = untied_other = 0
    for i in range(len(one)):
        for j in range(i):
            first, second = _sign(one[i] - one[j]), _sign(other[i] - other[j])
            agreeing += first * second
            untied_one += abs(first)
            untied_other += abs(second)
    if not untied_one or not untied_other:
        return None
    return agreeing / math.sqrt(untied_one * untied_other)


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test of `lost` against `gained` flips.

    If flips in both directions are equally likely, the smaller number is binomial with p = 1/2.
    """
    count, fewer = lost + gained, min(lost, gained)
    # The tail relative to its largest term, so that nothing underflows before the last product.
    tail = term = 1.0
    for k in range(fewer, 0, -1):
        term *= k / (count - k + 1)
        tail += term
        if term < 1e-18 * tail:
            break
    # By logarithms: the exact number of ways to choose among 64,000 flips takes 56 ms in C, and all
    # threads wait.
    ways = math.lgamma(count + 1) - math.lgamma(fewer + 1) - math.lgamma(count - fewer + 1)
    return min(1.0, 2 * math.exp(ways - count * math.log(2)) * tail)


def criterion_changes(groups: Sequence[ReplayedGroup]) -> list[CriterionChange]:
    """Return how each criterion's verdicts changed, the most flipped first.

    A criterion that only one of the two rubrics has is counted on its side only.
    """
    before: dict[str, Counter[str]] = defaultdict(Counter)
    after: dict[str, Counter[str]] = defaultdict(Counter)
    both: dict[str, Counter[str]] = defaultdict(Counter)
    for group in groups:
        place = {key: index for index, key in enumerate(group.criteria_after)}
        shared = [
            (key, index, place[key])
            for index, key in enumerate(group.criteria_before)
            if key in place
        ]
        for rollout in group.rollouts:
            said_before = _verdicts(rollout.verdicts_before, group.criteria_before)
            said_after = _verdicts(rollout.verdicts_after, group.criteria_after)
            for key, said in zip(group.criteria_before, said_before, strict=False):
                before[key][said] += 1
            for key, said in zip(group.criteria_after, said_after, strict=False):
                after[key][said] += 1
            if said_before and said_after:
                for key, one, other in shared:
                    both[key][said_before[one] + said_after[other]] += 1
    changes = [_change(key, before[key], after[key], both[key]) for key in before | after]
    return sorted(changes, key=lambda each: (-(each.lost + each.gained), each.key))


def _change(
    key: str, before: Mapping[str, int], after: Mapping[str, int], both: Mapping[str, int]
) -> CriterionChange:
    lost, gained = both[MET + NOT_MET], both[NOT_MET + MET]
    pairs = lost + gained + both[MET + MET] + both[NOT_MET + NOT_MET]
    return CriterionChange(
        key,
        met_before=before[MET],
        judged_before=before[MET] + before[NOT_MET],
        met_after=after[MET],
        judged_after=after[MET] + after[NOT_MET],
        pairs=pairs,
        lost=lost,
        gained=gained,
        p=mcnemar(lost, gained) if pairs else None,
    )


def _verdicts(verdicts: str, criteria: Sequence[str]) -> str:
    """Return the verdict string if its length fits the criteria, else "": old rows have none."""
    return verdicts if len(verdicts) == len(criteria) else ""


def _advantage_signs(rewards: Sequence[float]) -> list[int]:
    mean = math.fsum(rewards) / len(rewards)
    return [_sign(reward - mean) for reward in rewards]


def _sign(value: float) -> int:
    return (value > _SAME) - (value < -_SAME)


def _within(interval: Interval, least: float, greatest: float) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return Interval(interval.value, max(least, interval.low), min(greatest, interval.high))
