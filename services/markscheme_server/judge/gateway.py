"""The gateway: every call to a named judge passes here, and only here is it limited and retried.

A call waits for an endpoint with a closed breaker, for its quotas, and for a slot (teams take
turns; within a team earlier work goes first). It then runs under its timeout, and the breaker
records the outcome. A retryable failure is retried at most twice within the caller's deadline, and
during an outage only within the retry budget. A caller's material may make an endpoint fail; the
canned question, which holds none of it, therefore decides whether the breaker opens and closes.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import openai
from prometheus_client import Gauge

from markscheme_server import metrics
from markscheme_server.domain.call_context import CallContext
from markscheme_server.judge.endpoint import Endpoint
from markscheme_server.judge.failures import BreakerOpen, RateLimited, failure_of
from markscheme_server.judge.queue import CallQueue, QueueReservation
from markscheme_server.judge.refusals import Refused
from markscheme_server.judge.reply_cap import UnusableReply
from markscheme_server.judge.retry import (
    MAX_RETRY_AFTER_S,
    RETRIES,
    ProtocolError,
    RetryKind,
    backoff_s,
    classify,
    is_timeout,
    retry_after_s,
)
from markscheme_server.judge_settings import JudgeSettings
from markscheme_server.limits.concurrency import ConcurrencyLimiter
from markscheme_server.limits.quotas import Quotas

BREAKER_WAIT_S = 60.0
"""How long a call waits for an open breaker before it fails."""
CANNED_TIMEOUT_S = 15.0
"""An endpoint that takes longer to answer the small canned question counts as down."""

_FAILURES = (openai.OpenAIError, Refused, TimeoutError, UnusableReply, ProtocolError)
T = TypeVar("T")
Send = Callable[[Endpoint], Awaitable[T]]
ReserveBudget = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Gateway:
    """All calls of this process to one named judge."""

    name: str
    settings: JudgeSettings
    endpoints: Sequence[Endpoint]
    limiter: ConcurrencyLimiter
    quotas: Quotas
    queue: CallQueue
    ask_canned: Send[object] = field(init=False)
    """Asks an endpoint the canned question; set by the judge that owns this gateway."""
    _canned_tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def concurrency(self) -> int:
        """The maximum number of calls in flight, over the whole deployment."""
        return self.settings.concurrency

    def reserve(self, calls: int, team: str) -> QueueReservation:
        """Reserve capacity for the calls of a team's request; see `CallQueue.reserve`."""
        return self.queue.reserve(calls, team)

    async def call(
        self,
        send: Send[T],
        *,
        reserve_budget: ReserveBudget,
        role: str,
        tokens: int,
        context: CallContext,
    ) -> T:
        """Return the judge's answer to one question. Raises `JudgeFailure`.

        ``tokens`` is an estimate for the quota. ``reserve_budget`` runs before each attempt, ahead
        of every other wait.
        """
        loop = asyncio.get_running_loop()
        # One bound for all attempts: a retry does not wait for the breaker anew.
        wait_until = loop.time() + BREAKER_WAIT_S
        call = _Call(role, tokens, context, reserve_budget, wait_until)
        for retry in itertools.count():
            try:
                return await self._attempt(send, call)
            except _AttemptFailed as failed:
                wait_s = max(backoff_s(retry), failed.retry_after_s or 0.0)
                in_time = loop.time() + wait_s < context.deadline.at
                if retry == RETRIES or not in_time or not self._is_retryable(failed):
                    raise failure_of(failed.cause) from failed.cause
            await asyncio.sleep(wait_s)
            metrics.JUDGE_RETRIES.labels(judge=self.name).inc()
        raise AssertionError("unreachable")

    async def _attempt(self, send: Send[T], call: "_Call") -> T:
        loop, context = asyncio.get_running_loop(), call.context
        await call.reserve_budget()
        with _counted(metrics.QUEUE_DEPTH.labels(judge=self.name)) as waiting:
            # Outside the loop: going round it sends nothing, so it uses no more of the quota.
            await self.quotas.acquire(call.tokens, context.priority, context.team)
            while True:
                await self._wait_until_ready(min(call.wait_until, context.deadline.at))
                async with self.limiter.slot(context.priority, context.team):
                    endpoint = self._pick_endpoint(loop.time(), call.failed_endpoint)
                    if endpoint is None:
                        continue  # its breaker opened while we waited for the slot
                    # From here on `CALLS_IN_FLIGHT` counts it.
                    waiting.end()
                    return await self._send(endpoint, send, call)

    async def _wait_until_ready(self, until: float) -> None:
        """Wait until some endpoint admits calls.

        Raises when none does by ``until``, or as soon as it is certain that none will.
        """
        loop = asyncio.get_running_loop()
        while not any(e.is_ready(loop.time()) for e in self.endpoints):
            for endpoint in self.endpoints:
                self._ask_canned_if_due(endpoint)
            if loop.time() >= until or min(e.not_before for e in self.endpoints) > until:
                # It works but asked for a pause: the cause is its limit, not an outage.
                paused = any(
                    e.paused_until > loop.time() and e.breaker.admits for e in self.endpoints
                )
                cause = RateLimited() if paused else BreakerOpen()
                # The attempt has waited as long as it may, so no retry follows.
                raise _AttemptFailed(cause, RetryKind.NEVER, None)
            # Whichever endpoint changes first; then look at all of them again.
            waits = [asyncio.ensure_future(self._wait_for(e, until)) for e in self.endpoints]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    @staticmethod
    async def _wait_for(endpoint: Endpoint, until: float) -> None:
        loop = asyncio.get_running_loop()
        if (pause_s := min(endpoint.paused_until, until) - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        else:
            await endpoint.breaker.wait(loop.time(), until)

    def _pick_endpoint(self, now: float, failed: Endpoint | None) -> Endpoint | None:
        """Return the least busy ready endpoint, but ``failed`` only where no other is ready.

        An endpoint that fails at once is never busy, and would be picked again and again.
        """
        for endpoint in sorted(self.endpoints, key=lambda e: (e is failed, e.in_flight)):
            if endpoint.is_ready(now):
                return endpoint
        return None

    async def _send(self, endpoint: Endpoint, send: Send[T], call: "_Call") -> T:
        loop = asyncio.get_running_loop()
        started, breaker, deadline = loop.time(), endpoint.breaker, call.context.deadline
        endpoint.in_flight += 1
        if call.failed_endpoint is None:
            # Retries do not count: their budget is a share of these.
            breaker.count_first_attempt(started)
        outcome = "ok"
        try:
            with _counted(metrics.CALLS_IN_FLIGHT.labels(judge=self.name)):
                async with asyncio.timeout_at(min(started + self.settings.timeout_s, deadline.at)):
                    answer = await send(endpoint)
        except _FAILURES as error:
            # When the caller's time ran out before the call's, that says nothing of the endpoint.
            callers_timeout = (
                is_timeout(error) and deadline.at <= loop.time() < started + self.settings.timeout_s
            )
            if not callers_timeout:
                breaker.record(loop.time(), failed=_is_outage(error))
                self._ask_canned_if_due(endpoint)
            outcome = failure_of(error).reason.value
            call.failed_endpoint = endpoint
            raise self._attempt_failed(error, endpoint) from error
        except BaseException:
            # A cancellation says nothing about the endpoint: the breaker records no outcome.
            outcome = "cancelled"
            raise
        else:
            breaker.record(loop.time(), failed=False)
            return answer
        finally:
            endpoint.in_flight -= 1
            self.queue.count_ended()
            metrics.JUDGE_CALL_SECONDS.labels(
                judge=self.name, role=call.role, outcome=outcome
            ).observe(loop.time() - started)

    def _attempt_failed(self, error: Exception, endpoint: Endpoint) -> "_AttemptFailed":
        """Log a refusal, pause an endpoint that asks for it, and say whether to retry."""
        now, kind, wait_s = asyncio.get_running_loop().time(), classify(error), None
        if isinstance(error, Refused):
            wait_s = retry_after_s(error.headers)
            endpoint.log_refusal(self.name, error.refusal, now)
        if kind is RetryKind.RATE_LIMIT and wait_s is not None:
            # A shorter pause that is asked for later must not end a longer one.
            endpoint.paused_until = max(endpoint.paused_until, now + min(wait_s, MAX_RETRY_AFTER_S))
        return _AttemptFailed(error, kind, wait_s, endpoint)

    def _ask_canned_if_due(self, endpoint: Endpoint) -> None:
        """Ask the canned question in the background where the breaker wants it."""
        if endpoint.breaker.begin_question(asyncio.get_running_loop().time()):
            task = asyncio.ensure_future(self._ask_canned(endpoint))
            self._canned_tasks.add(task)
            task.add_done_callback(self._canned_tasks.discard)

    async def _ask_canned(self, endpoint: Endpoint) -> None:
        """Ask until the breaker can decide. Takes no slot: callers' calls may hold them all."""
        loop, breaker = asyncio.get_running_loop(), endpoint.breaker
        more = True
        while more:
            answered: bool | None = None
            try:
                async with asyncio.timeout(min(self.settings.timeout_s, CANNED_TIMEOUT_S)):
                    await self.ask_canned(endpoint)
                answered = True
            except _FAILURES as error:
                answered = not _is_outage(error)
            finally:
                # Also when cancelled: no other question is asked until this is called.
                breaker.end_question(loop.time(), answered=answered)
            metrics.CANNED_QUESTIONS.labels(
                judge=self.name, outcome="answered" if answered else "failed"
            ).inc()
            more = not breaker.admits and breaker.begin_question(loop.time())

    def _is_retryable(self, error: "_AttemptFailed") -> bool:
        if error.kind is RetryKind.NEVER:
            return False
        # The endpoint asks for a longer wait than a caller should have.
        if (error.retry_after_s or 0.0) > MAX_RETRY_AFTER_S:
            return False
        if error.kind is RetryKind.RATE_LIMIT or error.endpoint is None:
            return True
        # Another endpoint may take the retry at once; the same one only within its retry budget.
        now = asyncio.get_running_loop().time()
        others = [e for e in self.endpoints if e is not error.endpoint]
        return any(e.is_ready(now) for e in others) or error.endpoint.breaker.allows_retry(now)

    async def aclose(self) -> None:
        """Stop asking canned questions, free the slots and close the connections."""
        for task in self._canned_tasks:
            task.cancel()
        await asyncio.gather(*self._canned_tasks, return_exceptions=True)
        await self.limiter.aclose()
        for endpoint in self.endpoints:
            await endpoint.transport.aclose()


def _is_outage(error: Exception) -> bool:
    """Return whether a failure means that the endpoint is down. One that sends nonsense is up."""
    return classify(error) is RetryKind.TRANSIENT and not isinstance(error, ProtocolError)


class _AttemptFailed(Exception):
    """One attempt's failure, as the retry loop needs it."""

    def __init__(
        self,
        cause: Exception,
        kind: RetryKind,
        retry_after_s: float | None,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(str(kind))
        self.cause, self.kind, self.endpoint = cause, kind, endpoint
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Call:
    """One question and the state of its attempts."""

    role: str
    tokens: int
    context: CallContext
    reserve_budget: ReserveBudget
    wait_until: float
    failed_endpoint: Endpoint | None = None


class _GaugeUnit:
    """One unit of a gauge, which is taken off once."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._active = gauge, True
        gauge.inc()

    def end(self) -> None:
        if self._active:
            self._active = False
            self._gauge.dec()


@contextmanager
def _counted(gauge: Gauge) -> Iterator[_GaugeUnit]:
    """Count the block in a gauge, until its end or until `_GaugeUnit.end`."""
    count = _GaugeUnit(gauge)
    try:
        yield count
    finally:
        count.end()
