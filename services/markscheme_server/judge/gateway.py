"""The gateway: every call to a named judge goes through here, and nothing else limits, waits or retries.

In order: an endpoint whose breaker is closed, room under the quotas, a place (teams take turns, within one earlier work
first), the call under its time-out, and the outcome told to the breaker. What may pass is tried again, twice at most,
within the caller's deadline; in an outage only as far as the retry budget goes. What a caller's material does to an
endpoint is not held against the endpoint: before its breaker opens, and while it is open, a canned question decides.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import httpx2
import openai
import structlog
import tenacity
from openai import AsyncOpenAI, DefaultAioHttpClient
from prometheus_client import Gauge
from pydantic import SecretStr

from markscheme.vocabulary import UnscoredReason
from markscheme_server import metrics
from markscheme_server.config import JudgeSettings, origin_of
from markscheme_server.domain.call_context import CallContext
from markscheme_server.judge import retry
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.judge.breaker import Breaker, State
from markscheme_server.judge.capabilities import FORMS, Capabilities
from markscheme_server.judge.queue import Queue, Reservation
from markscheme_server.judge.refusals import Kind, Refusal, Refused
from markscheme_server.judge.reply_cap import UnusableReply, cap_reply
from markscheme_server.judge.retry import (
    RETRIES,
    RETRY_AFTER_MOST_S,
    NotTheProtocol,
    backoff_s,
    classify,
    retry_after_s,
    took_too_long,
)

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_S = 5.0
"""A host that does not answer by then is not there: the call was not sent."""
CANNED_TIMEOUT_S = 15.0
"""A small question is answered in less, or the endpoint is as good as out."""
SEE_DOCTOR = "; 'markscheme doctor' shows its own words"
LOG_EVERY_S = 60.0
"""A kind of refusal is logged once in this time for each endpoint, with how often it came."""

_FAILURES = (openai.OpenAIError, Refused, TimeoutError, UnusableReply, NotTheProtocol)
T = TypeVar("T")
Send = Callable[["Endpoint"], Awaitable[T]]
Cover = Callable[[], Awaitable[None]]
log = structlog.get_logger()


class ConcurrencyLimiter(Protocol):
    """Calls in flight; see :class:`markscheme_server.limits.concurrency.ConcurrencyLimiter`."""

    def hold(self, turn: int, team: str) -> AbstractAsyncContextManager[None]: ...

    async def aclose(self) -> None: ...


class Quotas(Protocol):
    """Calls and tokens a minute; see :class:`markscheme_server.limits.quotas.Quotas`."""

    async def take(self, tokens: int, turn: int, team: str) -> None: ...


@dataclass(slots=True)
class Endpoint:
    """One URL of a judge."""

    origin: str
    client: AsyncOpenAI
    breaker: Breaker
    capabilities: Capabilities = field(default_factory=Capabilities)
    in_flight: int = 0
    paused_until: float = 0.0
    _logged: dict[Kind, tuple[float, int]] = field(default_factory=dict)

    def log_refusal(self, judge: str, refusal: Refusal, now: float) -> None:
        """Tell the operator in the endpoint's own words; not more often than once a minute for each kind."""
        last, times = self._logged.get(refusal.kind, (-LOG_EVERY_S, 0))
        if now < last + LOG_EVERY_S:
            self._logged[refusal.kind] = (last, times + 1)
            return
        self._logged[refusal.kind] = (now, 0)
        log.warning(
            "judge_refused",
            judge=judge,
            endpoint=self.origin,
            kind=refusal.kind.value,
            status=refusal.status,
            parameter=refusal.parameter,
            said=refusal.words,
            not_logged=times,
        )

    @property
    def not_before(self) -> float:
        """When a call could start at the earliest."""
        return max(self.paused_until, self.breaker.not_before)

    def ready(self, now: float) -> bool:
        """Whether a call may start."""
        return now >= self.paused_until and self.breaker.admits


@dataclass(slots=True)
class Gateway:
    """All calls of this process to one named judge."""

    name: str
    settings: JudgeSettings
    endpoints: Sequence[Endpoint]
    places: ConcurrencyLimiter
    quotas: Quotas
    queue: Queue
    canned: Send[object] = field(init=False)
    """Asks an endpoint a question that holds nothing of any caller's; set by the judge whose gateway this is."""
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def concurrency(self) -> int:
        """The most calls in flight, over the whole deployment."""
        return self.settings.concurrency

    def reserve(self, calls: int, team: str) -> Reservation:
        """Room for the calls of a team's request; see :meth:`Queue.reserve`."""
        return self.queue.reserve(calls, team)

    async def call(
        self, send: Send[T], *, cover: Cover, role: str, tokens: int, context: CallContext
    ) -> T:
        """The judge's answer to one question. ``tokens`` is an estimate, for the quota.

        ``cover`` sees to the money for one try, before that waits for anything else. Raises :class:`JudgeFailure`.
        """
        call = _Call(
            role,
            tokens,
            context,
            cover,
            asyncio.get_running_loop().time() + self.settings.breaker_wait_s,
        )
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            wait=_wait,
            reraise=True,
            stop=tenacity.stop_any(tenacity.stop_after_attempt(1 + RETRIES), _Beyond(context)),
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.retry_state.attempt_number > 1:
                        metrics.JUDGE_RETRIES.labels(judge=self.name).inc()
                    return await self._once(send, call)
        except _Failed as failed:
            raise failure_of(failed.cause) from failed.cause
        raise AssertionError("unreachable")

    async def _once(self, send: Send[T], call: "_Call") -> T:
        loop = asyncio.get_running_loop()
        await call.cover()
        with _counted(metrics.QUEUE_DEPTH.labels(judge=self.name)) as waiting:
            await self.quotas.take(call.tokens, call.context.turn, call.context.team)
            while True:
                await self._ready(min(call.wait_until, call.context.deadline.at))
                async with self.places.hold(call.context.turn, call.context.team):
                    endpoint = self._admitted(loop.time(), call.failed_at)
                    if endpoint is None:
                        continue  # it turned while we waited for the place
                    waiting.end()
                    return await self._send(endpoint, send, call)

    async def _ready(self, until: float) -> None:
        """Wait until some endpoint takes calls. Raises when none does by ``until``, or as soon as that is certain."""
        loop = asyncio.get_running_loop()
        while not any(e.ready(loop.time()) for e in self.endpoints):
            for endpoint in self.endpoints:
                self._ask_if_due(endpoint)
            if loop.time() >= until or min(e.not_before for e in self.endpoints) > until:
                paused = any(
                    e.paused_until > loop.time() and e.breaker.admits for e in self.endpoints
                )
                raise _Failed(_Paused() if paused else _BreakerOpen(), retry.Kind.NEVER, None)
            waits = [asyncio.ensure_future(self._wait_for(e, until)) for e in self.endpoints]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    @staticmethod
    async def _wait_for(endpoint: Endpoint, until: float) -> None:
        loop = asyncio.get_running_loop()
        if (pause := min(endpoint.paused_until, until) - loop.time()) > 0:
            await asyncio.sleep(pause)
        else:
            await endpoint.breaker.wait(loop.time(), until)

    def _admitted(self, now: float, failed_at: Endpoint | None) -> Endpoint | None:
        """The least busy endpoint that takes a call now; the one where this call failed only for want of another,
        since an endpoint that fails at once is never busy."""
        for endpoint in sorted(self.endpoints, key=lambda e: (e is failed_at, e.in_flight)):
            if endpoint.ready(now):
                return endpoint
        return None

    async def _send(self, endpoint: Endpoint, send: Send[T], call: "_Call") -> T:
        loop = asyncio.get_running_loop()
        started, breaker, context = loop.time(), endpoint.breaker, call.context
        endpoint.in_flight += 1
        if call.failed_at is None:
            breaker.first_try(started)
        outcome = "ok"
        try:
            with _counted(metrics.CALLS_IN_FLIGHT.labels(judge=self.name)):
                async with asyncio.timeout_at(
                    min(started + self.settings.timeout_s, context.deadline.at)
                ):
                    answer = await send(endpoint)
        except _FAILURES as error:
            kind = classify(error)
            ours = took_too_long(error) and loop.time() >= context.deadline.at
            if ours and loop.time() < started + self.settings.timeout_s:
                pass  # the caller's time ran out before the call's: that tells nothing of the endpoint
            else:
                breaker.record(loop.time(), failed=_is_down(error))
                self._ask_if_due(endpoint)
            outcome = failure_of(error).reason.value
            wait = retry_after_s(error.headers) if isinstance(error, Refused) else None
            if isinstance(error, Refused):
                endpoint.log_refusal(self.name, error.refusal, loop.time())
            if kind is retry.Kind.RATE_LIMIT and wait is not None:
                endpoint.paused_until = max(
                    endpoint.paused_until, loop.time() + min(wait, RETRY_AFTER_MOST_S)
                )
            call.failed_at = endpoint
            raise _Failed(error, kind, wait, endpoint) from error
        except BaseException:
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

    def _ask_if_due(self, endpoint: Endpoint) -> None:
        """Have the canned question asked in the background where the breaker wants it."""
        if endpoint.breaker.begin_question(asyncio.get_running_loop().time()):
            task = asyncio.ensure_future(self._ask_canned(endpoint))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask_canned(self, endpoint: Endpoint) -> None:
        """Ask until the breaker knows enough. No place is taken: callers' calls may hold them all."""
        loop, breaker = asyncio.get_running_loop(), endpoint.breaker
        more = True
        while more:
            answered: bool | None = None
            try:
                async with asyncio.timeout(min(self.settings.timeout_s, CANNED_TIMEOUT_S)):
                    await self.canned(endpoint)
                answered = True
            except _FAILURES as error:
                answered = not _is_down(error)
            finally:
                breaker.end_question(loop.time(), answered=answered)
            metrics.CANNED_QUESTIONS.labels(
                judge=self.name, outcome="answered" if answered else "failed"
            ).inc()
            more = not breaker.admits and breaker.begin_question(loop.time())

    def _may_pass(self, error: BaseException) -> bool:
        if not isinstance(error, _Failed) or error.kind is retry.Kind.NEVER:
            return False
        if (error.wait_s or 0.0) > RETRY_AFTER_MOST_S:
            return False
        if error.kind is retry.Kind.RATE_LIMIT or error.endpoint is None:
            return True
        now = asyncio.get_running_loop().time()
        others = [e for e in self.endpoints if e is not error.endpoint]
        return any(e.ready(now) for e in others) or error.endpoint.breaker.allows_retry(now)

    async def aclose(self) -> None:
        """Let go of places and connections."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self.places.aclose()
        for endpoint in self.endpoints:
            await endpoint.client.close()


def _is_down(error: Exception) -> bool:
    """Whether a failure says that the endpoint is out. Who answers nonsense is there all the same."""
    return classify(error) is retry.Kind.TRANSIENT and not isinstance(error, NotTheProtocol)


def make_endpoints(name: str, settings: JudgeSettings, key: SecretStr | None) -> list[Endpoint]:
    """The judge's endpoints, each with a connection pool of its own and as wide as the judge's concurrency, with
    room for the canned question."""
    made = []
    forms = FORMS if settings.structured == "auto" else (settings.structured,)
    for url in settings.base_urls:
        timeout = httpx2.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s / 2))
        http = DefaultAioHttpClient(
            timeout=timeout,
            event_hooks={"response": [cap_reply]},
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=settings.concurrency + 1,
                max_keepalive_connections=settings.concurrency,
            ),
        )
        client = AsyncOpenAI(
            api_key=key.get_secret_value() if key else "none",
            base_url=url or OPENAI_URL,
            max_retries=0,
            timeout=timeout,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},
        )
        # Host and port only: a path may hold a key, and labels are shown to whoever may read the metrics.
        gauge = metrics.BREAKER_STATE.labels(judge=name, endpoint=origin_of(url).partition("/")[0])
        gauge.set(State.CLOSED)
        made.append(
            Endpoint(
                origin_of(url),
                client,
                Breaker(settings.breaker_probe_s, changed=gauge.set),
                Capabilities(forms, changed=_announce(name, origin_of(url))),
            )
        )
    return made


def _announce(judge: str, origin: str) -> Callable[[str, str], None]:
    """What hears of each thing learnt of an endpoint: the log, and a metric."""

    def changed(what: str, detail: str) -> None:
        log.warning(
            "endpoint_asked_differently", judge=judge, endpoint=origin, what=what, detail=detail
        )
        metrics.ADAPTATIONS.labels(judge=judge, endpoint=origin.partition("/")[0], what=what).inc()

    return changed


class _Failed(Exception):
    """One call's failure, as the retry loop needs it."""

    def __init__(
        self,
        cause: Exception,
        kind: retry.Kind,
        wait_s: float | None,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(str(kind))
        self.cause, self.kind, self.wait_s, self.endpoint = cause, kind, wait_s, endpoint


class _BreakerOpen(Exception):
    """No endpoint took calls for as long as one waits for that."""


class _Paused(Exception):
    """The endpoints asked us to wait for longer than there is time."""


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Failed) else None
    return max(backoff_s(state.attempt_number - 1), asked or 0.0)


@dataclass(slots=True)
class _Call:
    """One question's way through the gateway."""

    role: str
    tokens: int
    context: CallContext
    cover: Cover
    wait_until: float
    failed_at: Endpoint | None = None


class _Beyond(tenacity.stop.stop_base):
    """Stop when the wait would reach past the deadline."""

    def __init__(self, context: CallContext) -> None:
        self._context = context

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        return asyncio.get_running_loop().time() + state.upcoming_sleep >= self._context.deadline.at


class _Count:
    """One unit of a gauge, given back once."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._on = gauge, True
        gauge.inc()

    def end(self) -> None:
        if self._on:
            self._on = False
            self._gauge.dec()


@contextmanager
def _counted(gauge: Gauge) -> Iterator[_Count]:
    count = _Count(gauge)
    try:
        yield count
    finally:
        count.end()


def failure_of(error: Exception) -> JudgeFailure:
    """The reason for an error, in words that hold nothing of the request or the reply."""
    if isinstance(error, _BreakerOpen):
        return JudgeFailure(
            UnscoredReason.UNAVAILABLE, "the judge has been failing; its breaker is open"
        )
    if isinstance(error, _Paused):
        return JudgeFailure(UnscoredReason.RATE_LIMITED, "the judge's rate limit held")
    if isinstance(error, NotTheProtocol):
        return JudgeFailure(
            UnscoredReason.PARSE_FAILURE, "the judge's answer is not the protocol's"
        )
    if isinstance(error, UnusableReply):
        return JudgeFailure(UnscoredReason.PARSE_FAILURE, f"the judge's reply was refused: {error}")
    if took_too_long(error):
        return JudgeFailure(UnscoredReason.TIMEOUT, "the judge did not answer in time")
    if isinstance(error, Refused):
        refusal = error.refusal
        return JudgeFailure(refusal.reason, _message(refusal), detail=refusal.words)
    return JudgeFailure(UnscoredReason.UNAVAILABLE, "the judge could not be reached")


def _message(refusal: Refusal) -> str:
    """What happened and what to do, for callers; the endpoint's own words are the operator's."""
    match refusal.kind:
        case Kind.REFUSED:
            return "the judge's provider refused this material"
        case Kind.TOO_LARGE:
            return "the material is too large for the judge"
        case Kind.RATE_LIMITED:
            return "the judge's rate limit held"
        case Kind.QUOTA:
            return "the judge's quota or credit is used up; waiting does not help"
        case Kind.UNAVAILABLE:
            return f"the judge answered with status {refusal.status}"
        case Kind.TRUNCATED:
            return "the judge's reply was cut off at its length limit"
        case Kind.GENERATION:
            return "the judge's output failed its endpoint's own check"
        case Kind.PARAMETER:
            return (
                f"the judge's endpoint does not take {refusal.parameter!r} as it is set: take it out of the "
                "judge's settings (a temperature of 'default' is not sent)"
            )
        case Kind.FORM:
            return (
                "the judge's endpoint takes no form of structured output that it was asked for: "
                "set the judge's structured to 'auto' or 'text'"
            )
    if refusal.status in (401, 403):
        return (
            "the judge refused the key: check MARKSCHEME_JUDGE_API_KEY or the judge's api_key_env"
        )
    if refusal.status in (404, 405, 410):
        return "the judge knows no such model or path: check the judge's model and base_url"
    return f"the judge refused the request (status {refusal.status}){SEE_DOCTOR}"
