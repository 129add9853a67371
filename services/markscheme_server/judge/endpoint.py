"""One URL of a judge: its client and connection pool, its breaker, and what it is known to take."""

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
import structlog
from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic import SecretStr

from markscheme_server import metrics
from markscheme_server.judge.breaker import Breaker, BreakerState
from markscheme_server.judge.capabilities import FORMS, Capabilities
from markscheme_server.judge.refusals import Refusal, RefusalKind
from markscheme_server.judge.reply_cap import cap_reply
from markscheme_server.judge_settings import JudgeSettings, origin_of

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 5.0
"""A connection that takes longer counts as failed; nothing was sent."""
BREAKER_PROBE_S = 15.0
"""How long an open breaker waits before it asks the canned question."""
LOG_INTERVAL_S = 60.0
"""Each kind of refusal is logged at most once in this time per endpoint."""
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
            # The gateway retries, within the deadline and the retry budget.
            max_retries=0,
            timeout=timeout,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},
        )
        # Host and port only: a path may hold a key, and everyone who reads metrics sees labels.
        gauge = metrics.BREAKER_STATE.labels(judge=name, endpoint=origin_of(url).partition("/")[0])
        gauge.set(BreakerState.CLOSED)
        endpoints.append(
            Endpoint(
                origin_of(url),
                client,
                Breaker(BREAKER_PROBE_S, changed=gauge.set),
                Capabilities(forms, changed=_report_adaptation(name, origin_of(url))),
            )
        )
    return endpoints


def _report_adaptation(judge: str, origin: str) -> Callable[[str, str], None]:
    """Return a callback that logs and counts what is sent differently from now on."""

    def report(what: str, detail: str) -> None:
        log.warning("endpoint_adapted", judge=judge, endpoint=origin, what=what, detail=detail)
        metrics.ADAPTATIONS.labels(judge=judge, endpoint=origin.partition("/")[0], what=what).inc()

    return report
