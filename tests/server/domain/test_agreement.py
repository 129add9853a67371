"""Test Cohen's kappa and Wilson's interval against worked examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain.agreement import agreement, wilson


def test_kappa_is_cohens() -> None:
    # Two readers, 50 grants: both yes 20, both no 15, 5 and 10 apart; kappa is 0.4.
    pairs = [("1", "1")] * 20 + [("1", "0")] * 5 + [("0", "1")] * 10 + [("0", "0")] * 15
    found = agreement(pairs)
    assert (found.verdicts, found.share) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.1459, 0.6541), abs=1e-3)


def test_what_one_judge_does_not_know_does_not_count() -> None:
    assert agreement([("1?-0", "1100")]).verdicts == 2
    assert agreement([("?", "1"), ("", "")]) == (0, None, None, None, None)


def test_kappa_is_not_known_where_both_always_say_the_same() -> None:
    assert agreement([("111", "111")])[:3] == (3, 1.0, None)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    assert wilson(1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) is None


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share(counts: tuple[int, int]) -> None:
    interval = wilson(*counts)
    assert interval is not None
    assert -1e-9 <= interval[0] <= counts[0] / counts[1] + 1e-9
    assert counts[0] / counts[1] - 1e-9 <= interval[1] <= 1 + 1e-9
