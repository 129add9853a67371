"""Cache failed inductions, so that they are not paid for again at each step."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from markscheme.vocabulary import UnscoredReason
from markscheme_server.judge.base import JudgeFailure

REMEMBER_S = 600.0
MAX_FAILURES = 4096
LASTING_REASONS = frozenset(
    {
        UnscoredReason.PARSE_FAILURE,
        UnscoredReason.OFF_MENU,
        UnscoredReason.REFUSED,
        UnscoredReason.TOO_LARGE,
        UnscoredReason.TRUNCATED,
    }
)
"""Reasons for which the same question would fail again, unlike an outage or a limit."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: UnscoredReason
    message: str
    at: float


class FailedInductions:
    """The recent failures of one process, by keys of the request or of a part of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, _Failure] = OrderedDict()

    def remember(self, failure: JudgeFailure, *keys: str) -> None:
        """Cache a failure under these keys if the same request would fail again."""
        if failure.reason not in LASTING_REASONS:
            return
        for key in keys:
            self._failed[key] = _Failure(failure.reason, str(failure), self._clock())
            # Assigning keeps a key's old place, and eviction starts at the front.
            self._failed.move_to_end(key)
        while len(self._failed) > MAX_FAILURES:
            self._failed.popitem(last=False)

    def forget(self, *keys: str) -> None:
        """Forget failures, because the induction has succeeded."""
        for key in keys:
            self._failed.pop(key, None)

    def find(self, key: str) -> JudgeFailure | None:
        """Return the failure under a key if it is at most `REMEMBER_S` old."""
        failed = self._failed.get(key)
        if failed is None:
            return None
        age = self._clock() - failed.at
        if age > REMEMBER_S:
            del self._failed[key]
            return None
        return JudgeFailure(
            failed.reason,
            f"{failed.message} (this failed {age:.0f} s ago; it is asked again when the "
            f"responses change or {REMEMBER_S:.0f} s have passed)",
        )
