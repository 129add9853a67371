"""The service's figures for Prometheus: module-level objects, told apart only by labels from small fixed sets.

A label holds a name the operator chose (a judge, an endpoint) or a word of ours (a reason, a route's template), never
a prompt, a rollout, a key, a raw path or a request's id: labels are shown to whoever may read ``/metrics``, and each
new value is a time series for ever.

With ``PROMETHEUS_MULTIPROC_DIR`` set (``serve --workers N`` sets it) each worker keeps its values in a file there and
whichever worker is asked adds them all up. The variable has to be there before this module is first imported.
"""

import os
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
from prometheus_client.multiprocess import MultiProcessCollector

from markscheme.vocabulary import AssignedOrigin, UnscoredReason

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"
"""The label of whatever is outside the set that is counted by name: unknown routes, unusual methods."""

# They double the series of one process, and several processes do not have them: one shape for both.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()

# A training step takes from milliseconds (all verdicts stored) to the request's limit of ten minutes.
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)

REQUEST_SECONDS = Histogram(
    "markscheme_request_seconds",
    "From the first byte of a request to the last of its answer, streams included",
    ["route", "method", "status"],
    buckets=_REQUEST_BUCKETS,
    registry=REGISTRY,
)
JUDGE_CALL_SECONDS = Histogram(
    "markscheme_judge_call_seconds",
    "One attempt at a judge's endpoint; outcome: ok, or why there is no answer",
    ["judge", "role", "outcome"],
    buckets=_CALL_BUCKETS,
    registry=REGISTRY,
)
JUDGE_RETRIES = Counter(
    "markscheme_judge_retries_total",
    "Judge calls made again after a failure that may pass",
    ["judge"],
    registry=REGISTRY,
)
CANNED_QUESTIONS = Counter(
    "markscheme_canned_questions_total",
    "Small questions of the service's own, asked to find out whether an endpoint whose calls fail is out; outcome: "
    "answered, failed. No team pays for them",
    ["judge", "outcome"],
    registry=REGISTRY,
)
ADAPTATIONS = Counter(
    "markscheme_endpoint_adaptations_total",
    "Times that calls to an endpoint were changed for good or for a while because it refused something; what: "
    "structured_output, left_out, length_name, most_tokens",
    ["judge", "endpoint", "what"],
    registry=REGISTRY,
)
VERDICTS = Counter(
    "markscheme_verdicts_total",
    "Verdicts in answers, by where they came from: judged, cached (stored before), coalesced (another caller was at "
    "it), check (decided by code)",
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
    "Judge calls thrown away because the judge called a surely false criterion met. By team they are failed calls of "
    "GET /v1/usage",
    ["judge"],
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "markscheme_queue_depth",
    "Judge calls that wait for a place, over all workers of this replica",
    ["judge"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
CALLS_IN_FLIGHT = Gauge(
    "markscheme_calls_in_flight",
    "Judge calls under way, over all workers of this replica",
    ["judge"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
BREAKER_STATE = Gauge(
    "markscheme_breaker_state",
    "Circuit breaker of a judge's endpoint: 0 closed, 1 half-open, 2 open; the worst of "
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
    "What judge calls cost, in the currency of the configured prices",
    ["judge", "role"],
    registry=REGISTRY,
)
RATE_LIMITED = Counter(
    "markscheme_rate_limited_total",
    "Requests turned away because their team had sent its requests a minute",
    registry=REGISTRY,
)
RUBRICS = Counter(
    "markscheme_rubrics_total",
    "Groups by where their rubric came from: induced, reused, given",
    ["origin"],
    registry=REGISTRY,
)

# What can happen shows as 0 before it does: a rate needs a value to rise from.
for _origin in ("judged", "cached", "coalesced", "check"):
    VERDICTS.labels(origin=_origin)
for _reason in UnscoredReason:
    UNSCORED.labels(reason=_reason.value)
for _origin in get_args(AssignedOrigin):
    RUBRICS.labels(origin=_origin)


def exposition() -> bytes:
    """All figures in Prometheus' text format: this process's, or with several workers everyone's."""
    if MULTIPROC_DIR not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
