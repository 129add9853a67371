"""One deadline for a whole call: its attempts, the pauses between them and the reading of the answer.

The service is told what is left at each attempt, so that it stops when nobody waits any more. No I/O here.
"""

import math
import time
from dataclasses import dataclass
from typing import Self

import httpx

from markscheme.errors import DeadlineExceeded

HEADER = "X-Deadline-Ms"
EXTENSION = "markscheme.deadline"
"""Where a request carries its deadline down to the transport."""


@dataclass(slots=True)
class Deadline:
    """``total_s`` as the caller gave it, and when that is over on the monotonic clock. ``said``: the message of the
    service's last answer that was none."""

    total_s: float
    at: float
    last_message: str = ""

    @classmethod
    def after(cls, seconds: float | None) -> Self | None:
        """A deadline from now on; ``None`` has none."""
        if seconds is None:
            return None
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError("deadline_s must be a finite number above 0")
        return cls(seconds, time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Seconds to go; below 0 when it has passed."""
        return self.at - time.monotonic()

    def check(self) -> None:
        """Raise :class:`DeadlineExceeded` when it has passed."""
        if self.remaining_s <= 0:
            raise self.exceeded()

    def exceeded(self, why: str = "the service did not answer") -> DeadlineExceeded:
        """The error for a call that did not make it."""
        last_message = f" (it said: {self.last_message})" if self.last_message else ""
        return DeadlineExceeded(
            f"{why} within the {self.total_s:g} s that the call was given{last_message}; "
            "what the service has finished is stored: send it again with more time"
        )

    def stamp(self, request: httpx.Request) -> None:
        """Put what is left on one attempt: in its header and in its timeouts. Raises :class:`DeadlineExceeded`.

        The service is told a little less than that, so that the answer it gives at its deadline, with what was
        judged by then, still arrives within ours.
        """
        remaining_s = self.remaining_s
        header_ms = int((remaining_s - min(2.0, max(0.05, remaining_s * 0.05))) * 1000)
        if header_ms < 1:
            raise self.exceeded()
        request.headers[HEADER] = str(header_ms)
        request.extensions["timeout"] = {
            name: remaining_s if limit is None else min(limit, remaining_s)
            for name, limit in request.extensions.get("timeout", {}).items()
        }
