"""Sliding windows: how much they admit, and when they admit more."""

import asyncio
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.accounts.rate_limit import (
    FREE_BURST,
    MIN_BURST,
    PACE,
    SHORT_WINDOW_S,
    TeamRates,
)
from markscheme_server.limits.sliding_window import TICK_S, LimitState, SlidingWindows, limit_state
from server.limits.clock import before_the_turn


def weight(previous: int, current: int, current_s: float, after_s: float) -> int:
    """Return the count at a later moment without more hits; ``current_s`` runs from 120 s to 0."""
    left_s = current_s - after_s
    if left_s >= 60:
        return floor(previous * (left_s - 60) / 60) + current
    return floor(current * max(0.0, left_s) / 60)


@given(
    limit=st.integers(1, 5000),
    cost=st.integers(1, 50),
    previous=st.integers(0, 5000),
    current=st.integers(0, 5000),
    elapsed_s=st.floats(0.0, 59.9),
)
def test_capacity_returns_when_the_state_says_and_not_before(
    limit: int, cost: int, previous: int, current: int, elapsed_s: float
) -> None:
    cost = min(cost, limit)
    left_s = 60 - elapsed_s
    state = limit_state(
        limit, cost, previous, left_s if previous else 0.0, current, 60 + left_s if current else 0.0
    )
    assert state.remaining == max(0, limit - weight(previous, current, 60 + left_s, 0.0))
    assert weight(previous, current, 60 + left_s, state.retry_after_s) + cost <= limit
    if state.retry_after_s > 2 * TICK_S:
        assert (
            weight(previous, current, 60 + left_s, state.retry_after_s - 2 * TICK_S) + cost > limit
        )
    assert weight(previous, current, 60 + left_s, state.reset_s) == 0


class Counting(SlidingWindows):
    """Count the hits asked for."""

    asked = 0

    async def hit(self, limit: int, cost: int, *names: str) -> bool:
        self.asked += 1
        return await super().hit(limit, cost, *names)


def test_a_rejection_is_answered_without_counting_again() -> None:
    async def run() -> tuple[list[bool], int, LimitState]:
        windows = Counting()
        rates = TeamRates(windows)
        answers = [await rates.hit("red", 3) for _ in range(200)]
        return [answer.admitted for answer in answers], windows.asked, answers[-1].state

    before_the_turn()
    admitted, asked, last = asyncio.run(run())
    assert admitted == [True] * 3 + [False] * 197
    assert asked == 4
    assert (last.remaining, 0 < last.retry_after_s <= 60, 60 < last.reset_s <= 120) == (
        0,
        True,
        True,
    )


def test_a_minutes_requests_are_not_admitted_at_once() -> None:
    async def run() -> tuple[int, LimitState]:
        rates = TeamRates(SlidingWindows())
        answers = [await rates.hit("red", 300) for _ in range(300)]
        return sum(answer.admitted for answer in answers), answers[-1].state

    before_the_turn(SHORT_WINDOW_S)
    admitted, last = asyncio.run(run())
    assert admitted == 30
    assert (last.remaining, 0 < last.retry_after_s <= SHORT_WINDOW_S) == (0, True)


def test_a_rejection_by_the_short_window_does_not_count_in_the_minute() -> None:
    async def run() -> tuple[list[bool], int]:
        windows = SlidingWindows()
        rates = TeamRates(windows)
        admitted = [(await rates.hit("red", 20)).admitted for _ in range(30)]
        return admitted, (await windows.limit_state(20, 1, "team", "red", "requests")).remaining

    before_the_turn(SHORT_WINDOW_S)
    assert asyncio.run(run()) == (
        [True] * MIN_BURST + [False] * (30 - MIN_BURST),
        20 - MIN_BURST,
    )


def delays(rpm: int, arrivals_s: list[float]) -> list[float]:
    """Return how long each of a team's requests waits, to the millisecond."""
    now = 0.0

    async def run() -> list[float]:
        nonlocal now
        rates = TeamRates(SlidingWindows(), clock=lambda: now)
        waited = []
        for now in arrivals_s:  # noqa: B007
            decision = await rates.hit("red", rpm)
            assert decision.admitted
            waited.append(round(decision.delay_s, 3))
        return waited

    before_the_turn(SHORT_WINDOW_S)
    return asyncio.run(run())


@pytest.mark.parametrize(("rpm", "spacing_s"), [(60, 0.1), (300, 0.1), (1200, 0.025)])
def test_a_burst_begins_at_twice_the_even_rate(rpm: int, spacing_s: float) -> None:
    burst = max(MIN_BURST, rpm // 10)
    assert delays(rpm, [0.0] * burst) == pytest.approx(
        [max(0, i - FREE_BURST + 1) * spacing_s for i in range(burst)], abs=0.001
    )
    assert burst * spacing_s <= SHORT_WINDOW_S / PACE


def test_requests_that_come_evenly_do_not_wait() -> None:
    assert delays(300, [i * 0.2 for i in range(20)]) == [0.0] * 20


def test_a_burst_is_forgotten_when_its_turns_have_passed() -> None:
    assert delays(60, [0.0] * 4 + [0.5, 0.5]) == [0.0, 0.0, 0.1, 0.2, 0.0, 0.0]


def test_a_changed_limit_starts_at_zero() -> None:
    async def run() -> list[bool]:
        rates = TeamRates(SlidingWindows())
        return [(await rates.hit("red", rpm)).admitted for rpm in (1, 1, 2, 2, 2)]

    before_the_turn()
    assert asyncio.run(run()) == [True, False, True, True, False]


@pytest.mark.parametrize(("limit", "workers", "share"), [(9, 2, 4), (1, 4, 1)])
def test_without_redis_each_worker_has_an_even_share(limit: int, workers: int, share: int) -> None:
    async def run() -> int:
        rates = TeamRates(SlidingWindows(workers=workers))
        return sum([(await rates.hit("red", limit)).admitted for _ in range(limit + 1)])

    before_the_turn()
    assert asyncio.run(run()) == share
