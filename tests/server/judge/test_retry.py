"""Which failures are tried again, and what the endpoint's own words about waiting mean."""

from datetime import UTC, datetime

import httpx2
import openai
import pytest

from markscheme_server.judge.refusals import Refused, of_response
from markscheme_server.judge.retry import (
    BACKOFF_MOST_S,
    Kind,
    backoff_s,
    classify,
    retry_after_s,
    took_too_long,
)

REQUEST = httpx2.Request("POST", "http://judge/v1")
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def status(
    code: int, headers: dict[str, str] | None = None, error_code: str | None = None
) -> Refused:
    body = {"error": {"message": "scripted", "code": error_code}}
    return Refused(of_response(code, body), headers)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (status(500), Kind.TRANSIENT),
        (status(502), Kind.TRANSIENT),
        (status(503), Kind.TRANSIENT),
        (status(529), Kind.TRANSIENT),
        (status(408), Kind.TRANSIENT),
        (status(409), Kind.TRANSIENT),
        (status(429), Kind.RATE_LIMIT),
        (status(429, error_code="insufficient_quota"), Kind.NEVER),
        (status(400), Kind.NEVER),
        (status(401), Kind.NEVER),
        (status(403), Kind.NEVER),
        (status(404), Kind.NEVER),
        (status(413), Kind.NEVER),
        (status(422), Kind.NEVER),
        (status(500, {"x-should-retry": "false"}), Kind.NEVER),
        (status(400, {"x-should-retry": "true"}), Kind.TRANSIENT),
        (status(429, {"x-should-retry": "true"}), Kind.RATE_LIMIT),
        (status(400, {"x-should-retry": "maybe"}), Kind.NEVER),
        (openai.APIConnectionError(request=REQUEST), Kind.TRANSIENT),
        (openai.APITimeoutError(request=REQUEST), Kind.TRANSIENT),
        (TimeoutError(), Kind.TRANSIENT),
        (ValueError("a bug of ours"), Kind.NEVER),
    ],
)
def test_classification(error: Exception, kind: Kind) -> None:
    assert classify(error) is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "5"}, 5.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "garbage"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    found = retry_after_s(headers, now=NOW)
    assert found == (seconds if seconds is None else pytest.approx(seconds))


def test_backoff_is_jittered_within_its_bound() -> None:
    waits = [[backoff_s(attempt) for _ in range(200)] for attempt in (0, 1, 9)]
    assert all(
        0 <= w <= most
        for row, most in zip(waits, (0.25, 0.5, BACKOFF_MOST_S), strict=True)
        for w in row
    )
    assert max(waits[2]) > 1.0
    assert len(set(waits[0])) > 100


def test_a_dropped_connection_is_not_a_time_out() -> None:
    dropped = openai.APITimeoutError(request=REQUEST)
    dropped.__cause__ = httpx2.ConnectTimeout("the transport's word for it")
    assert not took_too_long(dropped)
    assert took_too_long(openai.APITimeoutError(request=REQUEST))
    assert took_too_long(TimeoutError())
