"""The service's metrics for Prometheus, as module-level objects with labels from small fixed sets.

A label holds a name that the operator chose (a judge, an endpoint) or a word of ours (a reason, a
route's template), never a prompt, a rollout, a key, a raw path or a request's id: every reader of
`/metrics` sees labels, and each new value is another time series.

With `PROMETHEUS_MULTIPROC_DIR` set (`serve --workers N` sets it) each worker keeps its values in a
file there, and the worker that is asked adds them up. The variable must be set before this module
is first imported.
"""

import os
from functools import lru_cache
from typing import get_args

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

from markscheme.vocabulary import AssignedOrigin, FindingKind, UnscoredReason

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"
"""The label for everything without one of its own: unknown routes, unusual methods."""

# `_created` series double the number, and multiprocess mode has none.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()

# A training step takes milliseconds (all verdicts stored) to ten minutes (the request's limit).
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)

REQUEST_SECONDS = Histogram(
    "markscheme_request_seconds",
    "Seconds from the first byte of a request to the last of its answer, streams included",
    ["route", "method", "status"],
    buckets=_REQUEST_BUCKETS,
    registry=REGISTRY,
)
JUDGE_CALL_SECONDS = Histogram(
    "markscheme_judge_call_seconds",
    "Seconds of one attempt at a judge's endpoint; outcome: ok, or why there is no answer",
    ["judge", "role", "outcome"],
    buckets=_CALL_BUCKETS,
    registry=REGISTRY,
)
JUDGE_RETRIES = Counter(
    "markscheme_judge_retries_total",
    "Judge calls retried after a failure that may pass",
    ["judge"],
    registry=REGISTRY,
)
CANNED_QUESTIONS = Counter(
    "markscheme_canned_questions_total",
    "Probe questions of the service itself to an endpoint whose calls fail; outcome: answered, "
    "failed. No team pays for them",
    ["judge", "outcome"],
    registry=REGISTRY,
)
ADAPTATIONS = Counter(
    "markscheme_endpoint_adaptations_total",
    "Changes to the calls to an endpoint, permanent or for a while, because it refused something; "
    "what: structured_output, left_out, length_name, most_tokens",
    ["judge", "endpoint", "what"],
    registry=REGISTRY,
)
VERDICTS = Counter(
    "markscheme_verdicts_total",
    "Verdicts in answers, by origin: judged, cached (stored before), coalesced (judged for another "
    "caller at the same time), check (decided by code)",
    ["origin"],
    registry=REGISTRY,
)
UNSCORED = Counter(
    "markscheme_unscored_total",
    "Rollouts answered with a null reward, by reason",
    ["reason"],
    registry=REGISTRY,
)
CANARY_FAILURES = Counter(
    "markscheme_canary_failures_total",
    "Judge calls discarded because the judge called a surely false criterion met. GET /v1/usage "
    "counts them by team, as failed calls",
    ["judge"],
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "markscheme_queue_depth",
    "Judge calls that wait for a concurrency slot, over all workers of this replica",
    ["judge"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
CALLS_IN_FLIGHT = Gauge(
    "markscheme_calls_in_flight",
    "Judge calls in flight, over all workers of this replica",
    ["judge"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
BREAKER_STATE = Gauge(
    "markscheme_breaker_state",
    "Circuit breaker of a judge's endpoint: 0 closed, 1 half-open, 2 open; the maximum over "
    "all workers",
    ["judge", "endpoint"],
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
TOKENS = Counter(
    "markscheme_tokens_total",
    "Tokens that judges reported; kind: prompt, completion",
    ["judge", "role", "kind"],
    registry=REGISTRY,
)
COST = Counter(
    "markscheme_cost_total",
    "Cost of judge calls in USD, at the configured prices",
    ["judge", "role"],
    registry=REGISTRY,
)
RATE_LIMITED = Counter(
    "markscheme_rate_limited_total",
    "Requests refused because their team had sent its requests a minute",
    registry=REGISTRY,
)
RUBRICS = Counter(
    "markscheme_rubrics_total",
    "Groups by where their rubric came from: induced, reused, given",
    ["origin"],
    registry=REGISTRY,
)
RUN_FINDINGS = Gauge(
    "markscheme_run_findings",
    "Runs with a finding of this kind, of those scored in the last hour that somebody looks at (a "
    "training does every 30 s); the maximum over all workers: so many or more",
    ["kind"],
    registry=REGISTRY,
    multiprocess_mode="livemax",
)

SHADOW = Counter(
    "markscheme_shadow_rollouts_total",
    "Rollouts judged once more beside their reward; kind: second (by the second judge), again (by "
    "the same judge); outcome: asked, known (stored before), failed, dropped (too many waited, or "
    "the process stopped)",
    ["kind", "outcome"],
    registry=REGISTRY,
)

# prometheus_client looks a series up under a lock each time, which takes ten times as long.
for _metric in list(globals().values()):
    if isinstance(_metric, MetricWrapperBase):
        _metric.labels = lru_cache(maxsize=None)(_metric.labels)  # type: ignore[method-assign]

# Create every series at 0: a rate needs a value to rise from.
for _origin in ("judged", "cached", "coalesced", "check"):
    VERDICTS.labels(origin=_origin)
for _reason in UnscoredReason:
    UNSCORED.labels(reason=_reason.value)
for _origin in get_args(AssignedOrigin):
    RUBRICS.labels(origin=_origin)
for _kind in ("second", "again"):
    for _outcome in ("asked", "known", "failed", "dropped"):
        SHADOW.labels(kind=_kind, outcome=_outcome)
for _kind in get_args(FindingKind):
    RUN_FINDINGS.labels(kind=_kind)


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format, summed over all workers."""
    if MULTIPROC_DIR not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
