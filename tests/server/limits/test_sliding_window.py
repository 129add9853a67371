"""Counts by the minute: how much room they leave, and when there is more."""

import asyncio
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.accounts.rate_limit import LEAST_AT_ONCE, SHORT_S, TeamRates
from markscheme_server.limits.sliding_window import TICK_S, LimitState, SlidingWindows, room
from server.limits.clock import before_the_turn


def weight(previous: int, current: int, current_s: float, after_s: float) -> int:
    """What is counted at a later moment when nothing comes: ``current_s`` runs from 120 s to 0."""
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
def test_there_is_room_when_it_says_so_and_not_before(
    limit: int, cost: int, previous: int, current: int, elapsed_s: float
) -> None:
    cost = min(cost, limit)
    left_s = 60 - elapsed_s
    told = room(
        limit, cost, previous, left_s if previous else 0.0, current, 60 + left_s if current else 0.0
    )
    assert told.remaining == max(0, limit - weight(previous, current, 60 + left_s, 0.0))
    assert weight(previous, current, 60 + left_s, told.wait_s) + cost <= limit
    if told.wait_s > 2 * TICK_S:
        assert weight(previous, current, 60 + left_s, told.wait_s - 2 * TICK_S) + cost > limit
    assert weight(previous, current, 60 + left_s, told.whole_s) == 0


class Counting(SlidingWindows):
    """Says how often it was asked."""

    asked = 0

    async def take(self, limit: int, cost: int, *names: str) -> bool:
        self.asked += 1
        return await super().take(limit, cost, *names)


def test_a_refusal_asks_nobody_while_it_must_be_one() -> None:
    async def run() -> tuple[list[bool], int, LimitState]:
        windows = Counting()
        rates = TeamRates(windows)
        answers = [await rates.take("red", 3) for _ in range(200)]
        return [answer.admitted for answer in answers], windows.asked, answers[-1].room

    before_the_turn()
    admitted, asked, last = asyncio.run(run())
    assert admitted == [True] * 3 + [False] * 197
    assert asked == 4
    assert (last.remaining, 0 < last.wait_s <= 60, 60 < last.whole_s <= 120) == (0, True, True)


def test_a_minutes_worth_does_not_come_at_once() -> None:
    async def run() -> tuple[int, LimitState]:
        rates = TeamRates(SlidingWindows())
        answers = [await rates.take("red", 300) for _ in range(300)]
        return sum(answer.admitted for answer in answers), answers[-1].room

    before_the_turn(SHORT_S)
    admitted, last = asyncio.run(run())
    assert admitted == 30
    assert (last.remaining, 0 < last.wait_s <= SHORT_S) == (0, True)


def test_what_the_shorter_window_refuses_takes_nothing_of_the_minute() -> None:
    async def run() -> tuple[list[bool], int]:
        windows = SlidingWindows()
        rates = TeamRates(windows)
        admitted = [(await rates.take("red", 20)).admitted for _ in range(30)]
        return admitted, (await windows.room(20, 1, "team", "red", "requests")).remaining

    before_the_turn(SHORT_S)
    assert asyncio.run(run()) == (
        [True] * LEAST_AT_ONCE + [False] * (30 - LEAST_AT_ONCE),
        20 - LEAST_AT_ONCE,
    )


def test_another_limit_begins_with_nothing_counted() -> None:
    async def run() -> list[bool]:
        rates = TeamRates(SlidingWindows())
        return [(await rates.take("red", rpm)).admitted for rpm in (1, 1, 2, 2, 2)]

    before_the_turn()
    assert asyncio.run(run()) == [True, False, True, True, False]


@pytest.mark.parametrize(("limit", "workers", "part"), [(9, 2, 4), (1, 4, 1)])
def test_without_redis_each_worker_has_a_part(limit: int, workers: int, part: int) -> None:
    async def run() -> int:
        rates = TeamRates(SlidingWindows(workers=workers))
        return sum([(await rates.take("red", limit)).admitted for _ in range(limit + 1)])

    before_the_turn()
    assert asyncio.run(run()) == part
