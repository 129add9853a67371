"""Which failures are tried again, and what the endpoint's own words about waiting mean."""

from datetime import UTC, datetime

import httpx2
import openai
import pytest

from markscheme_server.judge.refusal_parsing import of_response
from markscheme_server.judge.refusals import Refused
from markscheme_server.judge.retry import (
    MAX_BACKOFF_S,
    RetryKind,
    backoff_s,
    classify,
    is_timeout,
    retry_after_s,
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
        (status(500), RetryKind.TRANSIENT),
        (status(502), RetryKind.TRANSIENT),
        (status(503), RetryKind.TRANSIENT),
        (status(529), RetryKind.TRANSIENT),
        (status(408), RetryKind.TRANSIENT),
        (status(409), RetryKind.TRANSIENT),
        (status(429), RetryKind.RATE_LIMIT),
        (status(429, error_code="insufficient_quota"), RetryKind.NEVER),
        (status(400), RetryKind.NEVER),
        (status(401), RetryKind.NEVER),
        (status(403), RetryKind.NEVER),
        (status(404), RetryKind.NEVER),
        (status(413), RetryKind.NEVER),
        (status(422), RetryKind.NEVER),
        (status(500, {"x-should-retry": "false"}), RetryKind.NEVER),
        (status(400, {"x-should-retry": "true"}), RetryKind.TRANSIENT),
        (status(429, {"x-should-retry": "true"}), RetryKind.RATE_LIMIT),
        (status(400, {"x-should-retry": "maybe"}), RetryKind.NEVER),
        (openai.APIConnectionError(request=REQUEST), RetryKind.TRANSIENT),
        (openai.APITimeoutError(request=REQUEST), RetryKind.TRANSIENT),
        (TimeoutError(), RetryKind.TRANSIENT),
        (ValueError("a bug of ours"), RetryKind.NEVER),
    ],
)
def test_classification(error: Exception, kind: RetryKind) -> None:
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
        ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2027 00:00:00 +99999999999999999999"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "garbage"}, None),
        ({"retry-after": "30s"}, 30.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "500ms"}, 0.5),
        ({"retry-after": "2026-01-01T12:00:20Z"}, 20.0),
        ({"retry-after": str(int(NOW.timestamp()) + 40)}, 40.0),
        ({"retry-after": "9" * 400}, None),
        ({"x-ratelimit-reset": str((int(NOW.timestamp()) + 40) * 1000)}, 40.0),
        ({"x-ratelimit-reset": "1000000000"}, None),
        ({"x-ratelimit-reset-requests": "1d2h"}, 93_600.0),
        ({"x-ratelimit-reset-requests": "9" * 400 + "h"}, None),
        ({"x-ratelimit-reset-after": "5", "ratelimit-reset": "12"}, 12.0),
        ({"anthropic-ratelimit-requests-reset": "2026-01-01T12:00:20Z"}, 20.0),
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
        for row, most in zip(waits, (0.25, 0.5, MAX_BACKOFF_S), strict=True)
        for w in row
    )
    assert max(waits[2]) > 1.0
    assert len(set(waits[0])) > 100


def test_a_dropped_connection_is_not_a_time_out() -> None:
    assert not is_timeout(openai.APIConnectionError(request=REQUEST))
    assert is_timeout(openai.APITimeoutError(request=REQUEST))
    assert is_timeout(TimeoutError())
