"""One deadline for a whole call: its attempts, the pauses between them and reading the answer.

Each attempt tells the service how much time is left, so that it stops when nobody waits any more.
No I/O here.
"""

import time
from dataclasses import dataclass
from numbers import Real
from threading import TIMEOUT_MAX
from typing import Self, cast

import httpx

from markscheme.errors import DeadlineExceeded, InvalidArgument

HEADER, MAX_HEADER_S = "X-Deadline-Ms", 86_400
"""Where an attempt states what is left, and the most that a service accepts."""
EXTENSION = "markscheme.deadline"
"""The httpx request extension that carries the deadline to the transport."""


def check_seconds(seconds: object, param: str) -> None:
    """Raise `InvalidArgument` unless `seconds` is a number above 0 that a clock can wait for."""
    is_number = isinstance(seconds, Real) and not isinstance(seconds, bool)
    # Compared as it is: a large integer cannot be converted.
    if not is_number or not 0 < cast("float", seconds) <= TIMEOUT_MAX:
        raise InvalidArgument(param, "must be a finite number of seconds above 0")


@dataclass(slots=True)
class Deadline:
    """The time limit of one call.

    Attributes:
        total_s: Seconds that the caller allowed.
        at: When they are over, on the monotonic clock.
        last_message: Message of the service's last error answer, for the error that ends the
            call.
    """

    total_s: float
    at: float
    last_message: str = ""

    @classmethod
    def after(cls, seconds: float | None) -> Self | None:
        """Return a deadline that starts now, or `None` for no limit.

        Raises `InvalidArgument` unless `seconds` is a finite number above 0.
        """
        if seconds is None:
            return None
        check_seconds(seconds, "deadline_s")
        return cls(seconds, time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative once the deadline has passed."""
        return self.at - time.monotonic()

    def check(self) -> None:
        """Raise `DeadlineExceeded` if the deadline has passed."""
        if self.remaining_s <= 0:
            raise self.exceeded()

    def exceeded(self, why: str = "the service did not answer") -> DeadlineExceeded:
        """Return the error for a call that ran out of time."""
        last_message = f" (it said: {self.last_message})" if self.last_message else ""
        return DeadlineExceeded(
            f"{why} within the {self.total_s:g} s that the call was given{last_message}; "
            "what the service has finished is stored: send it again with more time"
        )

    def stamp(self, request: httpx.Request) -> None:
        """Put the remaining time on one attempt: a header and its timeouts.

        The header states a little less than what is left, so that the answer which the service
        gives at its deadline, with everything judged by then, still arrives before ours. Raises
        `DeadlineExceeded`.
        """
        remaining_s = self.remaining_s
        # 5 % of what is left, between 50 ms and 2 s, is for the way back.
        stated_s = remaining_s - min(2.0, max(0.05, remaining_s * 0.05))
        header_ms = int(min(stated_s, MAX_HEADER_S) * 1000)
        if header_ms < 1:
            raise self.exceeded()
        request.headers[HEADER] = str(header_ms)
        request.extensions["timeout"] = {
            name: remaining_s if limit is None else min(limit, remaining_s)
            for name, limit in request.extensions.get("timeout", {}).items()
        }
