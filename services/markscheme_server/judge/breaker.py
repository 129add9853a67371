"""A circuit breaker for one endpoint, and the retry budget that goes with its evidence.

    closed ── the last ten calls failed, or half of ten or more within 30 s, and a canned question too ──► open
    open ── after ``probe_s`` ──► half-open: the canned question is asked, and no call is let through
    half-open ── three answers in a row ──► closed;  none ──► open again

Calls carry what callers sent, and that alone may make an endpoint fail; the canned question holds nothing of it. Who
makes the calls asks it, where :meth:`Breaker.begin_question` says so. Callers wait through an open breaker, within
bounds, instead of failing a training step in milliseconds. No library we know does both the share of failures and the
waiting.
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
TRUSTED_S = 5.0
"""For so long after an answer to the canned question failing calls do not have it asked again."""
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
class _Window:
    """The outcomes of the last calls."""

    calls: deque[tuple[float, bool]] = field(default_factory=deque)
    failures: int = 0

    def add(self, now: float, failed: bool) -> None:
        self.calls.append((now, failed))
        self.failures += failed
        self.forget(now)

    def forget(self, now: float) -> None:
        while self.calls and self.calls[0][0] < now - WINDOW_S:
            self.failures -= self.calls.popleft()[1]

    def clear(self) -> None:
        self.calls.clear()
        self.failures = 0

    def fails(self, least: int, share: float) -> bool:
        """Whether there are ``least`` calls, and this share of them failed."""
        return len(self.calls) >= least and self.failures >= share * len(self.calls)


@dataclass(slots=True)
class Breaker:
    """Times are the event loop's. ``changed`` hears of each new state."""

    probe_s: float
    changed: Callable[[State], None] = lambda _: None
    state: State = State.CLOSED
    _evidence: _Window = field(default_factory=_Window)
    _window: _Window = field(default_factory=_Window)
    _in_a_row: int = 0
    _opened_at: float = 0.0
    _trusted_until: float = 0.0
    _asking: bool = False
    _answers: int = 0
    _firsts: deque[float] = field(default_factory=deque)
    _retries: deque[float] = field(default_factory=deque)
    _turned: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def admits(self) -> bool:
        """Whether calls are let through."""
        return self.state is State.CLOSED

    @property
    def not_before(self) -> float:
        """When calls could be let through at the earliest."""
        return self._opened_at + self.probe_s if self.state is State.OPEN else 0.0

    async def wait(self, now: float, until: float) -> None:
        """Return when the state has changed or a question is due, or at ``until``; whichever comes first."""
        if self.admits:
            return
        turned = self._turned
        try:
            async with asyncio.timeout(max(0.0, min(until, self.not_before or until) - now)):
                await turned.wait()
        except TimeoutError:
            return

    def record(self, now: float, *, failed: bool) -> None:
        """The outcome of a call: whether the endpoint failed. Saying "not now" or "no" is no failure."""
        self._window.add(now, failed)
        if self.state is State.CLOSED:
            self._evidence.add(now, failed)
            self._in_a_row = self._in_a_row + 1 if failed else 0

    def begin_question(self, now: float) -> bool:
        """Whether the canned question is to be asked now: because calls fail, or the breaker has been open for long
        enough. What was begun must end in :meth:`end_question`."""
        if self._asking:
            return False
        self._evidence.forget(now)
        if self.state is State.CLOSED and (now < self._trusted_until or not self._failing):
            return False
        if self.state is State.OPEN:
            if now < self._opened_at + self.probe_s:
                return False
            self._turn(State.HALF_OPEN)
        self._asking = True
        return True

    def end_question(self, now: float, *, answered: bool | None) -> None:
        """Whether the canned question was answered; ``None``: it was given up, which tells nothing."""
        self._asking = False
        if answered is None:
            return
        if not answered:
            self._opened_at, self._answers = now, 0
            self._turn(State.OPEN)
            return
        self._answers += 1
        if self.state is State.CLOSED or self._answers >= CLOSE_AFTER:
            self._evidence.clear()
            self._in_a_row, self._answers, self._trusted_until = 0, 0, now + TRUSTED_S
            if self.state is not State.CLOSED:
                self._turn(State.CLOSED)

    def first_try(self, now: float) -> None:
        """Count a call that is not a retry."""
        self._firsts.append(now)
        while self._firsts[0] < now - BUDGET_WINDOW_S:
            self._firsts.popleft()

    def allows_retry(self, now: float) -> bool:
        """Whether one more retry fits: always while calls mostly succeed, a fifth of the calls when many fail.

        Once it is open the breaker itself bounds the calls: a retry then only waits.
        """
        self._window.forget(now)
        if self.state is not State.CLOSED or not self._window.fails(
            BUDGET_FROM_CALLS, BUDGET_FROM_SHARE
        ):
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
        return self._evidence.fails(LEAST_CALLS, FAILURE_SHARE) or self._in_a_row >= LEAST_CALLS

    def _turn(self, state: State) -> None:
        self.state = state
        self.changed(state)
        self._turned.set()
        self._turned = asyncio.Event()
