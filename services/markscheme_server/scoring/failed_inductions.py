"""Inductions that failed a while ago: not paid for again at each step of a training."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from markscheme.vocabulary import UnscoredReason
from markscheme_server.judge.base import JudgeFailure

REMEMBER_S = 600.0
MOST = 4096
LASTING = frozenset(
    {
        UnscoredReason.PARSE_FAILURE,
        UnscoredReason.OFF_MENU,
        UnscoredReason.REFUSED,
        UnscoredReason.TOO_LARGE,
        UnscoredReason.TRUNCATED,
    }
)
"""Reasons that the same question would meet again. An outage or a limit is no such reason."""


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: UnscoredReason
    message: str
    at: float


class FailedInductions:
    """What failed, by the exact question and by what it was about. In memory: each process learns for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, _Failed] = OrderedDict()

    def remember(self, failure: JudgeFailure, *addresses: str) -> None:
        """Note a failure under its addresses, if it is one that lasts."""
        if failure.reason not in LASTING:
            return
        for address in addresses:
            self._failed[address] = _Failed(failure.reason, str(failure), self._clock())
            self._failed.move_to_end(address)
        while len(self._failed) > MOST:
            self._failed.popitem(last=False)

    def forget(self, *addresses: str) -> None:
        """It has been made meanwhile."""
        for address in addresses:
            self._failed.pop(address, None)

    def find(self, address: str) -> JudgeFailure | None:
        """The failure under an address, while it is remembered."""
        failed = self._failed.get(address)
        if failed is None:
            return None
        age = self._clock() - failed.at
        if age > REMEMBER_S:
            del self._failed[address]
            return None
        return JudgeFailure(
            failed.reason,
            f"{failed.message} (this failed {age:.0f} s ago; it is asked again when the "
            f"responses change or {REMEMBER_S:.0f} s have passed)",
        )
