"""A circuit breaker for one endpoint, and the retry budget that goes with its evidence.

    closed ── the last ten calls failed, or half of ten or more within 30 s ──► open
    open ── after ``probe_s`` ──► half-open: one call at a time is let through
    half-open ── three successes in a row ──► closed;  a failure ──► open again

Callers wait through an open breaker, within bounds, instead of failing a training step in milliseconds. No library
we know does both the share of failures and the waiting.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

WINDOW_S = 30.0
LEAST_CALLS = 10
FAILURE_SHARE = 0.5
CLOSE_AFTER = 3
BUDGET_FROM_CALLS, BUDGET_FROM_SHARE = 20, 0.4
BUDGET_WINDOW_S = 10.0
BUDGET_SHARE = 0.2
BUDGET_LEAST = 3


class State(IntEnum):
    """As exported in ``markscheme_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(slots=True)
class Breaker:
    """Times are the event loop's. ``changed`` hears of each new state."""

    probe_s: float
    changed: Callable[[State], None] = lambda _: None
    state: State = State.CLOSED
    _calls: deque[tuple[float, bool]] = field(default_factory=deque)
    _failures: int = 0
    _in_a_row: int = 0
    _opened_at: float = 0.0
    _probing: bool = False
    _successes: int = 0
    _firsts: deque[float] = field(default_factory=deque)
    _retries: deque[float] = field(default_factory=deque)
    _turned: asyncio.Event = field(default_factory=asyncio.Event)

    def ready(self, now: float) -> bool:
        """Whether :meth:`admits` would say yes; nothing is taken."""
        if self.state is State.OPEN:
            return now >= self._opened_at + self.probe_s
        return self.state is State.CLOSED or not self._probing

    def admits(self, now: float) -> bool:
        """Take leave to make a call. What was admitted must end in :meth:`record` or :meth:`withdraw`."""
        if self.state is State.OPEN and now >= self._opened_at + self.probe_s:
            self._turn(State.HALF_OPEN)
        if self.state is State.CLOSED:
            return True
        if self.state is State.HALF_OPEN and not self._probing:
            self._probing = True
            return True
        return False

    @property
    def not_before(self) -> float:
        """When a call could be admitted at the earliest."""
        return self._opened_at + self.probe_s if self.state is State.OPEN else 0.0

    async def wait(self, now: float, until: float) -> None:
        """Return when a call may be admitted, or at ``until``; whichever comes first."""
        next_probe = self.not_before or until
        turned = self._turned
        try:
            async with asyncio.timeout(max(0.0, min(until, next_probe) - now)):
                await turned.wait()
        except TimeoutError:
            return

    def record(self, now: float, *, failed: bool) -> None:
        """The outcome of an admitted call: whether the endpoint failed. Saying "not now" or "no" is no failure."""
        if self.state is State.HALF_OPEN:
            self._probing = False
            self._successes = 0 if failed else self._successes + 1
            if failed:
                self._open(now)
            elif self._successes >= CLOSE_AFTER:
                self._calls.clear()
                self._failures = self._in_a_row = 0
                self._turn(State.CLOSED)
            else:
                self._wake()
            return
        self._calls.append((now, failed))
        self._failures += failed
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._forget(now)
        if self.state is State.CLOSED and self._failing:
            self._open(now)

    def withdraw(self) -> None:
        """An admitted call that was given up: it tells nothing."""
        if self.state is State.HALF_OPEN:
            self._probing = False
            self._wake()

    def first_try(self, now: float) -> None:
        """Count a call that is not a retry."""
        self._firsts.append(now)

    def allows_retry(self, now: float) -> bool:
        """Whether one more retry fits: always while calls mostly succeed, a fifth of the calls when many fail.

        Once it is open the breaker itself bounds the calls: a retry then only waits.
        """
        self._forget(now)
        if self.state is not State.CLOSED or not self._suffering:
            return True
        for times in (self._firsts, self._retries):
            while times and times[0] < now - BUDGET_WINDOW_S:
                times.popleft()
        if len(self._retries) >= max(BUDGET_LEAST, BUDGET_SHARE * len(self._firsts)):
            return False
        self._retries.append(now)
        return True

    @property
    def _failing(self) -> bool:
        # A window alone would remember a busy endpoint's good half-minute long after it has died.
        share = len(self._calls) >= LEAST_CALLS and self._failures >= FAILURE_SHARE * len(self._calls)
        return share or self._in_a_row >= LEAST_CALLS

    @property
    def _suffering(self) -> bool:
        return len(self._calls) >= BUDGET_FROM_CALLS and self._failures >= BUDGET_FROM_SHARE * len(self._calls)

    def _forget(self, now: float) -> None:
        while self._calls and self._calls[0][0] < now - WINDOW_S:
            self._failures -= self._calls.popleft()[1]
        while self._firsts and self._firsts[0] < now - BUDGET_WINDOW_S:
            self._firsts.popleft()

    def _open(self, now: float) -> None:
        self._opened_at, self._successes = now, 0
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self.state = state
        self.changed(state)
        self._wake()

    def _wake(self) -> None:
        self._turned.set()
        self._turned = asyncio.Event()
