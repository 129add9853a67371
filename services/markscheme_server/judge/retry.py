"""When a judge call is tried again, and how long that waits. The only retry loop there is: the SDK's is off.

Three kinds of failure: *transient* (the endpoint or the way to it failed), *rate limit* (it said "not now") and
*never* (the same call would fail the same way).
"""

import math
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import httpx2
import openai

from markscheme_server.judge import refusals
from markscheme_server.judge.refusals import Refused

RETRIES = 2
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.25, 4.0
RETRY_AFTER_MOST_S = 30.0
_RESET = ("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens")
_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


class NotTheProtocol(ValueError):
    """A success whose body is no answer of the chat-completions protocol: a proxy's page, a torn reply."""


class Kind(StrEnum):
    """What a failure says about the next try."""

    TRANSIENT = "transient"
    RATE_LIMIT = "rate_limit"
    NEVER = "never"


def took_too_long(error: BaseException) -> bool:
    """Whether a call's time ran out. The SDK's aiohttp transport also calls a dropped connection a time-out."""
    return isinstance(error, TimeoutError) or (
        isinstance(error, openai.APITimeoutError)
        and not isinstance(error.__cause__, httpx2.ConnectTimeout)
    )


_PASSING = {refusals.Kind.RATE_LIMITED: Kind.RATE_LIMIT, refusals.Kind.UNAVAILABLE: Kind.TRANSIENT}


def classify(error: BaseException) -> Kind:
    """The kind of an error of one call. The endpoint's own ``x-should-retry`` overrides the status."""
    if isinstance(error, Refused):
        kind = _PASSING.get(error.refusal.kind, Kind.NEVER)
        advice = error.headers.get("x-should-retry")
        if advice == "true":
            return Kind.RATE_LIMIT if error.refusal.status == 429 else Kind.TRANSIENT
        return Kind.NEVER if advice == "false" else kind
    passing = (openai.APIConnectionError, TimeoutError, NotTheProtocol)
    return Kind.TRANSIENT if isinstance(error, passing) else Kind.NEVER


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """How long the endpoint asks us to wait, in any of the forms in use; ``None`` when it does not say (sanely).

    ``retry-after-ms``; ``Retry-After`` in seconds, whole or not, or as an HTTP date; OpenAI's
    ``x-ratelimit-reset-*`` such as ``6m0s``, of which the longest counts.
    """
    milliseconds = _positive(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    stated = headers.get("retry-after")
    if stated is not None:
        return (
            seconds
            if (seconds := _positive(stated)) is not None
            else _until(stated, now or datetime.now(UTC))
        )
    return max((s for name in _RESET if (s := _span(headers.get(name))) is not None), default=None)


def backoff_s(attempt: int) -> float:
    """Full jitter: uniform in [0, min(4, 0.25 * 2^attempt)], ``attempt`` counted from 0."""
    return random.uniform(0, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**attempt))


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _until(text: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    wait = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return wait if wait > 0 else None


def _span(text: str | None) -> float | None:
    match = _SPAN.fullmatch(text.strip()) if text else None
    if match is None or not match[0]:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
