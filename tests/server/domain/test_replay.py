"""Statistics of a replay: against textbook values, and what holds for any rewards."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain.replay import (
    Interval,
    ReplayedGroup,
    ReplayedRollout,
    clustered_mean,
    compare,
    kendall_tau_b,
    mcnemar,
    t975,
)

REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.75, 1.0]))
KEYS = ("a", "b")
ROLLOUTS = st.builds(
    ReplayedRollout,
    REWARDS,
    REWARDS,
    st.text("10-?", min_size=2, max_size=2),
    st.text("10-?", min_size=2, max_size=2),
)
GROUPS = st.lists(
    st.builds(ReplayedGroup, st.lists(ROLLOUTS, max_size=5), st.just(KEYS), st.just(KEYS)),
    max_size=6,
)


def group(
    *pairs: tuple[float | None, float | None], before: str = "", after: str = ""
) -> ReplayedGroup:
    """Make a group without criteria, or with one whose verdicts are these characters."""
    return ReplayedGroup(
        [
            ReplayedRollout(one, other, before[i : i + 1], after[i : i + 1])
            for i, (one, other) in enumerate(pairs)
        ],
        ["c"] if before else [],
        ["c"] if after else [],
    )


def swapped(groups: Sequence[ReplayedGroup]) -> list[ReplayedGroup]:
    return [
        ReplayedGroup(
            [
                ReplayedRollout(r.after, r.before, r.verdicts_after, r.verdicts_before)
                for r in each.rollouts
            ],
            each.criteria_after,
            each.criteria_before,
        )
        for each in groups
    ]


@given(GROUPS)
def test_a_replay_that_changes_nothing_has_no_difference(groups: list[ReplayedGroup]) -> None:
    same = [
        ReplayedGroup(
            [
                ReplayedRollout(r.before, r.before, r.verdicts_before, r.verdicts_before)
                for r in each.rollouts
            ],
            KEYS,
            KEYS,
        )
        for each in groups
    ]
    found = compare(same)
    assert found.difference.value in (0.0, None)
    assert found.sign_changes.value in (0.0, None)
    assert found.rank_agreement.value is None or found.rank_agreement.value == pytest.approx(1)
    assert all((c.lost, c.gained) == (0, 0) and c.p in (1.0, None) for c in found.criteria)


@given(GROUPS)
def test_before_and_after_swapped_turn_the_signs(groups: list[ReplayedGroup]) -> None:
    one, other = compare(groups), compare(swapped(groups))
    assert (one.rollouts, one.unknown_before) == (other.rollouts, other.unknown_after)
    if one.difference.value is not None and other.difference.value is not None:
        assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.rank_agreement == pytest.approx(other.rank_agreement)
    assert one.sign_changes == pytest.approx(other.sign_changes)
    flips = {c.key: (c.lost, c.gained, c.p) for c in one.criteria}
    assert {c.key: (c.gained, c.lost, c.p) for c in other.criteria} == flips


@given(GROUPS, st.randoms(use_true_random=False))
def test_the_order_of_groups_and_rollouts_does_not_matter(
    groups: list[ReplayedGroup], chance: random.Random
) -> None:
    shuffled = [
        ReplayedGroup(chance.sample(each.rollouts, len(each.rollouts)), KEYS, KEYS)
        for each in chance.sample(groups, len(groups))
    ]
    one, other = compare(groups), compare(shuffled)
    assert one.criteria == other.criteria
    assert one.difference == pytest.approx(other.difference)
    assert one.sign_changes == pytest.approx(other.sign_changes)


@given(GROUPS)
def test_what_is_not_known_on_one_side_counts_on_neither(groups: list[ReplayedGroup]) -> None:
    known = [
        ReplayedGroup(
            [r for r in each.rollouts if r.before is not None and r.after is not None], KEYS, KEYS
        )
        for each in groups
    ]
    one, other = compare(groups), compare(known)
    assert (one.rollouts, one.difference, one.rank_agreement, one.sign_changes) == (
        other.rollouts,
        other.difference,
        other.rank_agreement,
        other.sign_changes,
    )
    assert other.unknown_before == other.unknown_after == 0


@given(GROUPS)
def test_intervals_hold_their_value_and_stay_in_range(groups: list[ReplayedGroup]) -> None:
    found = compare(groups)
    ranges = ((found.difference, -1.0), (found.rank_agreement, -1.0), (found.sign_changes, 0.0))
    for interval, least in ranges:
        if interval.value is None:
            assert interval == Interval(None)
            continue
        assert least - 1e-9 <= interval.value <= 1 + 1e-9
        assert (interval.low is None) == (interval.high is None)
        if interval.low is not None and interval.high is not None:
            assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    count = lost + gained
    tail = sum(math.comb(count, k) for k in range(min(lost, gained) + 1))
    assert mcnemar(lost, gained) == pytest.approx(
        float(min(Fraction(1), 2 * Fraction(tail, 2**count)))
    )


def test_mcnemar_of_many_flips_neither_overflows_nor_fails() -> None:
    assert mcnemar(50_000, 50_000) == 1.0
    assert mcnemar(0, 50_000) == 0.0
    # Against the normal approximation with a continuity correction: z = 2.
    assert mcnemar(50_000 - 316, 50_000 + 316 + 1) == pytest.approx(0.0455, abs=0.0005)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (10, 2.2281), (100, 1.9840)],
)
def test_quantiles_of_t_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t975(freedom) == pytest.approx(quantile, rel=2e-3)


def test_quantiles_of_t_fall_towards_the_normal_ones() -> None:
    quantiles = [t975(freedom) for freedom in range(1, 400)]
    assert all(one > other for one, other in pairwise(quantiles))
    assert t975(10**6) == pytest.approx(1.959964, abs=1e-5)


def test_equal_values_within_a_group_count_as_one() -> None:
    """Copies of a rollout add no certainty: the interval is that of the groups."""
    values = [0.1, 0.3, 0.2, 0.6]
    alone, copied = (
        clustered_mean([[v] for v in values]),
        clustered_mean([[v] * 50 for v in values]),
    )
    assert copied == pytest.approx(alone)
    mean, error = 0.3, math.sqrt(sum((v - 0.3) ** 2 for v in values) / 3 / 4)
    assert alone == pytest.approx((mean, mean - t975(3) * error, mean + t975(3) * error))


def test_one_group_has_a_difference_and_no_interval() -> None:
    assert compare([group((0.0, 0.5), (1.0, 1.0))]).difference == Interval(0.25, None, None)


def test_nothing_known_is_nothing_and_not_zero() -> None:
    found = compare([group((None, 0.5), (1.0, None))])
    assert (found.rollouts, found.unknown_before, found.unknown_after) == (0, 1, 1)
    assert (found.before, found.after, found.difference.value) == (None, None, None)
    assert found.rank_agreement.value is found.sign_changes.value is None


def test_ranks_agree_turn_or_are_not_defined() -> None:
    assert kendall_tau_b([0, 0.5, 1], [0.2, 0.3, 0.4]) == pytest.approx(1)
    assert kendall_tau_b([0, 0.5, 1], [1, 0.5, 0]) == pytest.approx(-1)
    # One tie on one side: 2 of sqrt(3 * 2) pairs.
    assert kendall_tau_b([0, 0.5, 1], [0, 1, 1]) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau_b([0, 0.5, 1], [1, 1, 1]) is None


def test_signs_of_advantages_change_also_from_zero() -> None:
    found = compare([group((0.0, 1.0), (1.0, 0.0)), group((0.5, 0.0), (0.5, 1.0))])
    assert found.sign_changes.value == 1.0
    assert found.rank_groups == 1
    # Rewards that are sums of rounded fractions differ by less than 1e-9.
    even = group((0.1 + 0.2, 0.3), (0.3, 0.1 + 0.2))
    assert compare([even]).sign_changes.value == 0.0


def test_flips_are_counted_where_both_verdicts_are_known() -> None:
    pairs = [(None, None)] * 6
    (found,) = compare([group(*pairs, before="111?0-", after="0001?1")]).criteria
    assert (found.pairs, found.lost, found.gained) == (3, 3, 0)
    assert (found.met_before, found.judged_before) == (3, 4)
    assert (found.met_after, found.judged_after) == (2, 5)
    assert found.p == pytest.approx(0.25)


def test_a_criterion_of_one_rubric_only_has_no_test() -> None:
    rollouts = [ReplayedRollout(1.0, 0.5, "11", "10")]
    found = {
        c.key: c for c in compare([ReplayedGroup(rollouts, ["a", "b"], ["b", "new"])]).criteria
    }
    assert (found["a"].pairs, found["a"].p, found["a"].judged_after) == (0, None, 0)
    assert (found["new"].pairs, found["new"].judged_before) == (0, 0)
    # Verdicts are found by criterion, wherever the other rubric has it.
    assert (found["b"].pairs, found["b"].lost, found["b"].p) == (1, 0, 1.0)
