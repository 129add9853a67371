"""A circuit breaker for one endpoint, and the budget for retries.

    closed ── the last ten calls failed, or half of ten or more within 30 s,
              and the canned question failed too ──► open
    open ── after ``probe_s`` ──► half-open: ask the canned question, admit no call
    half-open ── three answers in a row ──► closed;  a failure ──► open

The material of a call alone may make an endpoint fail; the canned question holds none of it. The
owner of the breaker asks it whenever `Breaker.begin_question` returns true. Callers wait through an
open breaker, within bounds, instead of failing a training step in milliseconds. We know no library
that has both the failure share and the waiting.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

WINDOW_S = 30.0
MIN_CALLS = 10
FAILURE_SHARE = 0.5
CLOSE_AFTER = 3
TRUSTED_S = 5.0
"""Seconds after an answer to the canned question in which failing calls do not trigger it again."""
RETRY_BUDGET_MIN_CALLS, RETRY_BUDGET_FAILURE_SHARE = 20, 0.4
"""The retry budget applies from this number of calls and this share of failures."""
RETRY_BUDGET_WINDOW_S = 10.0
RETRY_BUDGET_SHARE = 0.2
RETRY_BUDGET_MIN = 3


class BreakerState(IntEnum):
    """The values of the metric ``markscheme_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(slots=True)
class _Outcomes:
    """The outcomes of the calls of the last `WINDOW_S` seconds."""

    calls: deque[tuple[float, bool]] = field(default_factory=deque)
    failures: int = 0

    def add(self, now: float, failed: bool) -> None:
        self.calls.append((now, failed))
        self.failures += failed
        self.drop_old(now)

    def drop_old(self, now: float) -> None:
        while self.calls and self.calls[0][0] < now - WINDOW_S:
            self.failures -= self.calls.popleft()[1]

    def clear(self) -> None:
        self.calls.clear()
        self.failures = 0

    def exceed(self, min_calls: int, failure_share: float) -> bool:
        """Return whether there are at least ``min_calls``, of which this share failed."""
        return len(self.calls) >= min_calls and self.failures >= failure_share * len(self.calls)


@dataclass(slots=True)
class Breaker:
    """Times are the event loop's. ``changed`` is called with each new state."""

    probe_s: float
    changed: Callable[[BreakerState], None] = lambda _: None
    state: BreakerState = BreakerState.CLOSED
    _evidence: _Outcomes = field(default_factory=_Outcomes)
    """Calls that count for opening; cleared by an answer to the canned question."""
    _outcomes: _Outcomes = field(default_factory=_Outcomes)
    _failures_in_a_row: int = 0
    _opened_at: float = 0.0
    _trusted_until: float = 0.0
    _asking: bool = False
    _answers_in_a_row: int = 0
    _first_attempts: deque[float] = field(default_factory=deque)
    _retries: deque[float] = field(default_factory=deque)
    _state_changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def admits(self) -> bool:
        """Whether calls are admitted."""
        return self.state is BreakerState.CLOSED

    @property
    def not_before(self) -> float:
        """The earliest time at which calls could be admitted."""
        return self._opened_at + self.probe_s if self.state is BreakerState.OPEN else 0.0

    async def wait(self, now: float, until: float) -> None:
        """Wait until the state changes, the canned question is due, or ``until``."""
        if self.admits:
            return
        # Taken now, because `_set_state` puts a new event in its place.
        state_changed = self._state_changed
        try:
            async with asyncio.timeout(max(0.0, min(until, self.not_before or until) - now)):
                await state_changed.wait()
        except TimeoutError:
            return

    def record(self, now: float, *, failed: bool) -> None:
        """Record a call, and whether the endpoint failed. A refusal or rate limit is no failure."""
        self._outcomes.add(now, failed)
        # While it is open the canned question alone decides: calls are no evidence then.
        if self.state is BreakerState.CLOSED:
            self._evidence.add(now, failed)
            self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0

    def begin_question(self, now: float) -> bool:
        """Return whether to ask the canned question now; if so, `end_question` must follow.

        It is due when calls fail, and when the breaker has been open for ``probe_s``.
        """
        # One question at a time: several would only load an endpoint that is in trouble.
        if self._asking:
            return False
        self._evidence.drop_old(now)
        if self.state is BreakerState.CLOSED and (now < self._trusted_until or not self._failing):
            return False
        if self.state is BreakerState.OPEN:
            if now < self._opened_at + self.probe_s:
                return False
            self._set_state(BreakerState.HALF_OPEN)
        self._asking = True
        return True

    def end_question(self, now: float, *, answered: bool | None) -> None:
        """Record whether the canned question was answered; ``None``: it was cancelled."""
        self._asking = False
        # A question that was cancelled says nothing about the endpoint.
        if answered is None:
            return
        if not answered:
            self._opened_at, self._answers_in_a_row = now, 0
            self._set_state(BreakerState.OPEN)
            return
        self._answers_in_a_row += 1
        # One answer clears an endpoint that is in use; an open breaker needs several.
        if self.state is BreakerState.CLOSED or self._answers_in_a_row >= CLOSE_AFTER:
            self._evidence.clear()
            self._failures_in_a_row, self._answers_in_a_row = 0, 0
            self._trusted_until = now + TRUSTED_S
            if self.state is not BreakerState.CLOSED:
                self._set_state(BreakerState.CLOSED)

    def count_first_attempt(self, now: float) -> None:
        """Count a call that is not a retry."""
        self._first_attempts.append(now)
        while self._first_attempts[0] < now - RETRY_BUDGET_WINDOW_S:
            self._first_attempts.popleft()

    def allows_retry(self, now: float) -> bool:
        """Return whether the budget allows one more retry, and count it.

        All retries are allowed while most calls succeed; when many fail, a fifth of the calls. An
        open breaker bounds the calls itself: a retry then only waits.
        """
        self._outcomes.drop_old(now)
        if self.state is not BreakerState.CLOSED or not self._outcomes.exceed(
            RETRY_BUDGET_MIN_CALLS, RETRY_BUDGET_FAILURE_SHARE
        ):
            return True
        for times in (self._first_attempts, self._retries):
            while times and times[0] < now - RETRY_BUDGET_WINDOW_S:
                times.popleft()
        # A share alone would leave an endpoint with few calls no retry at all.
        budget = max(RETRY_BUDGET_MIN, RETRY_BUDGET_SHARE * len(self._first_attempts))
        if len(self._retries) >= budget:
            return False
        self._retries.append(now)
        return True

    @property
    def _failing(self) -> bool:
        # The failure share alone would open late: a busy endpoint's successes count for 30 s.
        return (
            self._evidence.exceed(MIN_CALLS, FAILURE_SHARE) or self._failures_in_a_row >= MIN_CALLS
        )

    def _set_state(self, state: BreakerState) -> None:
        self.state = state
        self.changed(state)
        # Wake the current waiters; later ones wait for the next change.
        self._state_changed.set()
        self._state_changed = asyncio.Event()
