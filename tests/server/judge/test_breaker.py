"""Test the breaker.

It opens when calls and a canned question fail, probes with that question, and closes after three
answers.
"""

import asyncio

from markscheme_server.judge.breaker import TRUSTED_S, Breaker, BreakerState

PROBE_S = 15.0


def failing(calls: int = 10, at: float = 0.0) -> Breaker:
    breaker = Breaker(PROBE_S)
    for _ in range(calls):
        breaker.record(at, failed=True)
    return breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = failing(at=at)
    assert breaker.begin_question(at)
    breaker.end_question(at, answered=False)
    return breaker


def test_a_question_is_due_at_half_of_ten() -> None:
    breaker = Breaker(PROBE_S)
    for failed in [True, False] * 4 + [False]:
        breaker.record(0.0, failed=failed)
    assert not breaker.begin_question(0.0)
    breaker.record(0.0, failed=True)
    assert breaker.begin_question(0.0)
    assert breaker.admits  # calls go on until it is known


def test_it_opens_when_the_question_fails_too() -> None:
    breaker = opened()
    assert (breaker.state, breaker.admits) == (BreakerState.OPEN, False)
    assert not breaker.begin_question(PROBE_S - 0.1)


def test_it_stays_closed_while_the_question_is_answered() -> None:
    breaker = failing()
    assert breaker.begin_question(0.0)
    assert not breaker.begin_question(0.0)  # one at a time
    breaker.end_question(0.0, answered=True)
    assert breaker.state is BreakerState.CLOSED
    for _ in range(100):
        breaker.record(1.0, failed=True)
    assert not breaker.begin_question(TRUSTED_S - 0.1)  # however many calls fail
    assert breaker.begin_question(TRUSTED_S)
    breaker.end_question(TRUSTED_S, answered=False)
    assert breaker.state is BreakerState.OPEN


def test_few_or_old_failures_ask_nothing() -> None:
    assert not failing(9).begin_question(0.0)
    breaker = failing(9)
    breaker.record(31.0, failed=False)
    for _ in range(9):
        breaker.record(31.0, failed=True)
    assert breaker.begin_question(31.0)  # nine of ten within the window
    breaker = failing(9)
    for failed in [False] * 10 + [True] * 5:
        breaker.record(31.0, failed=failed)
    assert not breaker.begin_question(31.0)


def test_ten_in_a_row_are_enough_whatever_a_busy_window_holds() -> None:
    breaker = Breaker(PROBE_S)
    for _ in range(500):
        breaker.record(0.0, failed=False)
    for n in range(10):
        assert not breaker.begin_question(n / 2)
        breaker.record(n / 2, failed=True)
    assert breaker.begin_question(5.0)


def test_once_open_only_the_question_is_asked_and_three_answers_close() -> None:
    breaker = opened()
    for i in range(3):
        now = PROBE_S + i
        assert breaker.begin_question(now)
        assert not breaker.begin_question(now)
        assert (breaker.state, breaker.admits) == (BreakerState.HALF_OPEN, False)
        breaker.end_question(now, answered=True)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.admits


def test_a_question_that_fails_opens_again_for_the_whole_time() -> None:
    breaker = opened()
    assert breaker.begin_question(PROBE_S)
    breaker.end_question(PROBE_S + 1, answered=False)
    assert breaker.state is BreakerState.OPEN
    assert breaker.not_before == 2 * PROBE_S + 1


def test_a_question_that_was_given_up_may_be_asked_again() -> None:
    breaker = opened()
    assert breaker.begin_question(PROBE_S)
    breaker.end_question(PROBE_S, answered=None)
    assert breaker.begin_question(PROBE_S)


def test_calls_that_end_after_it_opened_change_nothing() -> None:
    breaker = opened()
    for _ in range(20):
        breaker.record(1.0, failed=False)
    assert breaker.state is BreakerState.OPEN


def test_retries_are_free_while_calls_succeed_and_a_fifth_when_many_fail() -> None:
    healthy = Breaker(PROBE_S)
    for _ in range(50):
        healthy.record(0.0, failed=False)
    assert all(healthy.allows_retry(0.0) for _ in range(50))
    busy, quiet = Breaker(PROBE_S), Breaker(PROBE_S)
    for breaker in (busy, quiet):
        for i in range(20):
            breaker.record(0.0, failed=i % 5 > 2)
        assert breaker.state is BreakerState.CLOSED
    for _ in range(40):
        busy.count_first_attempt(1.0)
    assert sum(busy.allows_retry(1.0) for _ in range(50)) == 8
    assert sum(quiet.allows_retry(1.0) for _ in range(50)) == 3
    assert busy.allows_retry(12.0)


async def test_who_waits_hears_of_each_turn() -> None:
    breaker, loop = opened(), asyncio.get_running_loop()
    waiting = asyncio.ensure_future(breaker.wait(60.0, PROBE_S))
    await asyncio.sleep(0)
    started = loop.time()
    assert breaker.begin_question(PROBE_S)
    await waiting
    assert loop.time() - started < 30


def test_each_new_state_is_told() -> None:
    told: list[BreakerState] = []
    breaker = opened()
    breaker.changed = told.append
    for i in range(3):
        assert breaker.begin_question(PROBE_S + i)
        breaker.end_question(PROBE_S + i, answered=True)
    assert told == [BreakerState.HALF_OPEN, BreakerState.CLOSED]
