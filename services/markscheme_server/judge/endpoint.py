"""One URL of a judge: its connection pool, its breaker, and what it is known to take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import SecretStr
from pydantic_core import to_json

from markscheme_server import metrics
from markscheme_server.judge.breaker import Breaker, BreakerState
from markscheme_server.judge.capabilities import FORMS, Capabilities
from markscheme_server.judge.refusals import Refusal, RefusalKind
from markscheme_server.judge.transport import Reply, Transport
from markscheme_server.judge_settings import JudgeSettings, origin_of

BREAKER_PROBE_S = 15.0
"""How long an open breaker waits before it asks the canned question."""
LOG_INTERVAL_S = 60.0
"""Each kind of refusal is logged at most once in this time per endpoint."""
log = structlog.get_logger()


@dataclass(slots=True)
class Endpoint:
    """One URL of a judge. Times are the event loop's."""

    origin: str
    transport: Transport
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

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """Ask for a chat completion; raises as `Transport.request` does."""
        return await self.transport.request("POST", "/chat/completions", to_json(body))

    @property
    def not_before(self) -> float:
        """The earliest time at which a call could start."""
        return max(self.paused_until, self.breaker.not_before)

    def is_ready(self, now: float) -> bool:
        """Return whether a call may start."""
        return now >= self.paused_until and self.breaker.admits


def make_endpoints(name: str, settings: JudgeSettings, key: SecretStr | None) -> list[Endpoint]:
    """Make the judge's endpoints."""
    endpoints = []
    forms = FORMS if settings.structured == "auto" else (settings.structured,)
    for url in settings.base_urls:
        # Host and port only: a path may hold a key, and everyone who reads metrics sees labels.
        gauge = metrics.BREAKER_STATE.labels(judge=name, endpoint=origin_of(url).partition("/")[0])
        gauge.set(BreakerState.CLOSED)
        endpoints.append(
            Endpoint(
                origin_of(url),
                Transport(url, settings, key),
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
