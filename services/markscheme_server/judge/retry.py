"""Decide which judge calls are retried, and after how long. The SDK's own retries are off.

There are three kinds of failure: *transient* (the endpoint or the network failed), *rate limit*
(the endpoint asks to wait) and *never* (the same call would fail in the same way).
"""

import math
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import openai

from markscheme_server.judge.refusals import RefusalKind, Refused

RETRIES = 2
BACKOFF_FIRST_S, MAX_BACKOFF_S = 0.25, 4.0
MAX_RETRY_AFTER_S = 30.0
_RESET_HEADERS = (
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "ratelimit-reset",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-reset",
)
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""From here on a number of seconds, or of milliseconds, is a time since 1970 and no wait."""


class ProtocolError(ValueError):
    """An answer that is not HTTP, or a success that is not a chat completion, as a proxy's page."""


class RetryKind(StrEnum):
    """What a failure says about the next attempt."""

    TRANSIENT = "transient"
    RATE_LIMIT = "rate_limit"
    NEVER = "never"


def is_timeout(error: BaseException) -> bool:
    """Return whether a call timed out."""
    return isinstance(error, TimeoutError | openai.APITimeoutError)


_RETRYABLE_REFUSALS = {
    RefusalKind.RATE_LIMITED: RetryKind.RATE_LIMIT,
    RefusalKind.UNAVAILABLE: RetryKind.TRANSIENT,
}


def classify(error: BaseException) -> RetryKind:
    """Return the kind of a call's error. The endpoint's ``x-should-retry`` overrides the status."""
    if isinstance(error, Refused):
        kind = _RETRYABLE_REFUSALS.get(error.refusal.kind, RetryKind.NEVER)
        advice = error.headers.get("x-should-retry")
        # The header says whether to retry; the status still says whether it was a rate limit.
        if advice == "true":
            return RetryKind.RATE_LIMIT if error.refusal.status == 429 else RetryKind.TRANSIENT
        return RetryKind.NEVER if advice == "false" else kind
    retryable = (openai.APIConnectionError, TimeoutError, ProtocolError)
    return RetryKind.TRANSIENT if isinstance(error, retryable) else RetryKind.NEVER


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the seconds that the endpoint asks to wait; ``None`` if it names no usable time.

    Reads ``retry-after-ms``, then ``Retry-After``, then the longest of the headers that say when a
    limit is reset. Each may be a number of seconds, a duration such as ``6m0s``, a date as HTTP or
    ISO 8601 writes it, or a time since 1970.
    """
    now = now or datetime.now(UTC)
    milliseconds = _positive(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    if "retry-after" in headers:
        return _wait_s(headers["retry-after"], now)
    resets = [_wait_s(headers[name], now) for name in _RESET_HEADERS if name in headers]
    return max((seconds for seconds in resets if seconds is not None), default=None)


def backoff_s(attempt: int) -> float:
    """Draw a delay with full jitter, uniform in [0, min(4, 0.25 · 2^attempt)] from attempt 0."""
    return random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_FIRST_S * 2**attempt))


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    # `float` reads "nan" and "inf" too.
    return value if math.isfinite(value) and value > 0 else None


def _wait_s(text: str, now: datetime) -> float | None:
    """Return the positive seconds that a header states in any of its forms."""
    number = _positive(text)
    if number is not None and number >= _EPOCH_S:
        number = number / (1000 if number >= _EPOCH_MS else 1) - now.timestamp()
    found = next((s for s in (number, _duration_s(text), _until(text, now)) if s is not None), None)
    return found if found is not None and 0 < found < math.inf else None


def _until(text: str, now: datetime) -> float | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            then = parse(text.strip())
        except (ValueError, OverflowError):  # a year or a zone that is no date's
            continue
        # A date in the zone -0000 is parsed without a zone; HTTP dates are in UTC.
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return None


def _duration_s(text: str) -> float | None:
    match = _DURATION.fullmatch(text.strip())
    # All parts are optional, so the pattern matches an empty text too.
    if match is None or not match[0]:
        return None
    days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
