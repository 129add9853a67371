"""The breaker: opens on a share of failures, probes one call at a time, closes on three successes."""

import asyncio

from markscheme_server.judge.breaker import Breaker, State

PROBE_S = 15.0


def failing(calls: int = 10, at: float = 0.0) -> Breaker:
    breaker = Breaker(PROBE_S)
    for _ in range(calls):
        assert breaker.admits(at)
        breaker.record(at, failed=True)
    return breaker


def test_it_opens_at_half_of_ten() -> None:
    breaker = Breaker(PROBE_S)
    for failed in [True, False] * 4 + [False]:
        breaker.record(0.0, failed=failed)
    assert breaker.state is State.CLOSED
    breaker.record(0.0, failed=True)
    assert breaker.state is State.OPEN
    assert not breaker.admits(PROBE_S - 0.1)


def test_few_or_old_failures_open_nothing() -> None:
    assert failing(9).state is State.CLOSED
    breaker = failing(9)
    breaker.record(31.0, failed=False)
    for _ in range(9):
        breaker.record(31.0, failed=True)
    assert breaker.state is State.OPEN  # nine of ten within the window
    breaker = failing(9)
    for failed in [False] * 10 + [True] * 5:
        breaker.record(31.0, failed=failed)
    assert breaker.state is State.CLOSED


def test_ten_in_a_row_open_it_whatever_a_busy_window_holds() -> None:
    breaker = Breaker(PROBE_S)
    for _ in range(500):
        breaker.record(0.0, failed=False)
    for n in range(10):
        assert breaker.state is State.CLOSED
        breaker.record(n / 2, failed=True)
    assert breaker.state is State.OPEN


def test_one_probe_at_a_time_and_three_successes_close() -> None:
    breaker = failing()
    for i in range(3):
        now = PROBE_S + i
        assert breaker.admits(now)
        assert not breaker.ready(now)
        assert not breaker.admits(now)
        assert breaker.state is State.HALF_OPEN
        breaker.record(now, failed=False)
    assert breaker.state is State.CLOSED
    assert breaker.admits(20.0)
    assert breaker.admits(20.0)


def test_a_failing_probe_opens_again_for_the_whole_time() -> None:
    breaker = failing()
    assert breaker.admits(PROBE_S)
    breaker.record(PROBE_S + 1, failed=True)
    assert breaker.state is State.OPEN
    assert breaker.not_before == 2 * PROBE_S + 1


def test_a_withdrawn_probe_leaves_its_place() -> None:
    breaker = failing()
    assert breaker.admits(PROBE_S)
    breaker.withdraw()
    assert breaker.admits(PROBE_S)


def test_retries_are_free_while_calls_succeed_and_a_fifth_when_many_fail() -> None:
    healthy = Breaker(PROBE_S)
    for _ in range(50):
        healthy.record(0.0, failed=False)
    assert all(healthy.allows_retry(0.0) for _ in range(50))
    busy, quiet = Breaker(PROBE_S), Breaker(PROBE_S)
    for breaker in (busy, quiet):
        for i in range(20):
            breaker.record(0.0, failed=i % 5 > 2)
        assert breaker.state is State.CLOSED
    for _ in range(40):
        busy.first_try(1.0)
    assert sum(busy.allows_retry(1.0) for _ in range(50)) == 8
    assert sum(quiet.allows_retry(1.0) for _ in range(50)) == 3
    assert busy.allows_retry(12.0)


async def test_who_waits_hears_of_each_turn() -> None:
    breaker, loop = failing(), asyncio.get_running_loop()
    assert breaker.admits(PROBE_S)
    waiting = asyncio.ensure_future(breaker.wait(PROBE_S, PROBE_S + 5))
    await asyncio.sleep(0)
    started = loop.time()
    breaker.record(PROBE_S + 1, failed=False)
    await waiting
    assert loop.time() - started < 1


def test_each_new_state_is_told() -> None:
    told: list[State] = []
    breaker = Breaker(PROBE_S, changed=told.append)
    for _ in range(10):
        breaker.record(0.0, failed=True)
    for i in range(3):
        assert breaker.admits(PROBE_S + i)
        breaker.record(PROBE_S + i, failed=False)
    assert told == [State.OPEN, State.HALF_OPEN, State.CLOSED]
