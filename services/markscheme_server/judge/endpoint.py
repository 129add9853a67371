"""One URL of a judge: its client and connection pool, its breaker, and what it is known to take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx2
import structlog
from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    DefaultAioHttpClient,
)
from pydantic import SecretStr
from pydantic_core import to_json

from markscheme_server import metrics
from markscheme_server.judge.breaker import Breaker, BreakerState
from markscheme_server.judge.capabilities import FORMS, Capabilities
from markscheme_server.judge.refusals import Refusal, RefusalKind
from markscheme_server.judge.reply_cap import cap_reply
from markscheme_server.judge.retry import ProtocolError
from markscheme_server.judge_settings import JudgeSettings, origin_of

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 5.0
"""A connection that takes longer counts as failed; nothing was sent."""
BREAKER_PROBE_S = 15.0
"""How long an open breaker waits before it asks the canned question."""
LOG_INTERVAL_S = 60.0
"""Each kind of refusal is logged at most once in this time per endpoint."""
NOT_HTTP = (aiohttp.ClientResponseError, UnicodeError)
"""What the SDK's transport raises for a status line or a header that cannot be read."""
log = structlog.get_logger()


@dataclass(slots=True)
class Endpoint:
    """One URL of a judge. Times are the event loop's."""

    origin: str
    client: AsyncOpenAI
    breaker: Breaker
    capabilities: Capabilities = field(default_factory=Capabilities)
    in_flight: int = 0
    paused_until: float = 0.0
    """The endpoint asked for no calls before this time."""
    http: httpx2.AsyncClient | None = None
    """What `client` sends with."""
    _template: tuple[httpx2.URL, Sequence[tuple[bytes, bytes]], dict[str, Any]] | None = None
    """URL, headers and extensions of the SDK's first request for a completion."""
    _logged: dict[RefusalKind, tuple[float, int]] = field(default_factory=dict)

    def log_refusal(self, judge: str, refusal: Refusal, now: float) -> None:
        """Log a refusal in the endpoint's own words, at most once a minute for each kind."""
        last, suppressed = self._logged.get(refusal.kind, (-LOG_INTERVAL_S, 0))
        if now < last + LOG_INTERVAL_S:
            self._logged[refusal.kind] = (last, suppressed + 1)
            return
        self._logged[refusal.kind] = (now, 0)
        log.warning(
            "judge_refused",
            judge=judge,
            endpoint=self.origin,
            kind=refusal.kind.value,
            status=refusal.status,
            parameter=refusal.parameter,
            message=refusal.words,
            suppressed=suppressed,
        )

    async def post(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        """Ask for a chat completion; return the answer, whatever its status.

        `headers`: those of the judge's settings, always the same. Raises
        `openai.APIConnectionError`, `ProtocolError` for an answer that is no HTTP, and what the
        hook `cap_reply` raises.
        """
        try:
            return await self._send(body, headers)
        except NOT_HTTP as error:
            raise ProtocolError("the answer is not HTTP") from error

    async def _send(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        content = to_json(body)
        if self.http is None or self._template is None:
            try:
                return await self.client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    content=content,
                    options={"headers": headers} if headers else {},
                )
            except APIStatusError as error:
                return error.response
        # Only the body differs from request to request. The SDK took 13 % of all computing for a
        # scoring request to make the rest anew; sending took a quarter of that.
        url, headers_sent, extensions = self._template
        request = httpx2.Request(
            "POST", url, headers=headers_sent, content=content, extensions=dict(extensions)
        )
        try:
            return await self.http.send(request)
        except httpx2.TimeoutException as error:
            raise APITimeoutError(request=request) from error
        except httpx2.RequestError as error:
            raise APIConnectionError(request=request) from error

    async def remember(self, request: httpx2.Request) -> None:
        """Keep the first completion's request, without its body. A hook of `http`."""
        if self._template is None and request.method == "POST":
            kept = [each for each in request.headers.raw if each[0].lower() != b"content-length"]
            self._template = request.url, kept, request.extensions

    @property
    def not_before(self) -> float:
        """The earliest time at which a call could start."""
        return max(self.paused_until, self.breaker.not_before)

    def is_ready(self, now: float) -> bool:
        """Return whether a call may start."""
        return now >= self.paused_until and self.breaker.admits


def make_endpoints(name: str, settings: JudgeSettings, key: SecretStr | None) -> list[Endpoint]:
    """Make the judge's endpoints, each with a connection pool of its own.

    A pool has one connection more than the judge's concurrency: for the canned question.
    """
    endpoints = []
    forms = FORMS if settings.structured == "auto" else (settings.structured,)
    for url in settings.base_urls:
        timeout = httpx2.Timeout(
            settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s / 2)
        )
        http = DefaultAioHttpClient(
            timeout=timeout,
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=settings.concurrency + 1,
                max_keepalive_connections=settings.concurrency,
            ),
        )
        client = AsyncOpenAI(
            api_key=key.get_secret_value() if key else "none",
            base_url=url or OPENAI_URL,
            # The gateway retries, within the deadline and the retry budget.
            max_retries=0,
            timeout=timeout,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},
        )
        # Host and port only: a path may hold a key, and everyone who reads metrics sees labels.
        gauge = metrics.BREAKER_STATE.labels(judge=name, endpoint=origin_of(url).partition("/")[0])
        gauge.set(BreakerState.CLOSED)
        endpoint = Endpoint(
            origin_of(url),
            client,
            Breaker(BREAKER_PROBE_S, changed=gauge.set),
            Capabilities(forms, changed=_report_adaptation(name, origin_of(url))),
            http=http,
        )
        http.event_hooks = {"request": [endpoint.remember], "response": [cap_reply]}
        endpoints.append(endpoint)
    return endpoints


def _report_adaptation(judge: str, origin: str) -> Callable[[str, str], None]:
    """Return a callback that logs and counts what is sent differently from now on."""

    def report(what: str, detail: str) -> None:
        log.warning("endpoint_adapted", judge=judge, endpoint=origin, what=what, detail=detail)
        metrics.ADAPTATIONS.labels(judge=judge, endpoint=origin.partition("/")[0], what=what).inc()

    return report
