"""The bounded queue of a judge's calls, shared by the teams."""

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass, field

from markscheme_server.errors import Unavailable

RATE_WINDOW_S = 10.0
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 60


@dataclass(slots=True)
class QueueReservation:
    """Calls that an admitted request may still make; see `CallQueue.reserve`."""

    queue: "CallQueue"
    calls: int
    team: str

    def release(self, calls: int | None = None) -> None:
        """Free ``calls`` that have ended; by default all that are left."""
        # What was released by group must not be released again at the end.
        freed = self.calls if calls is None else min(calls, self.calls)
        self.calls -= freed
        self.queue.free(freed, self.team)


@dataclass(slots=True)
class CallQueue:
    """Admits at most ``limit`` calls that have not ended, and each team's even share of it."""

    limit: int
    _reserved: Counter[str] = field(default_factory=Counter)
    _ended: deque[float] = field(default_factory=deque)

    def reserve(self, calls: int, team: str) -> QueueReservation:
        """Reserve capacity for a team's request; raise 503 with ``Retry-After`` if full.

        A team may fill the queue while it is alone. A team that finds the queue full of others'
        calls may still use its even share, so that the queue may then hold more than its limit. A
        team without reserved calls is always admitted: a request larger than the limit could never
        be answered otherwise.

        Release what is not needed any more. The rest is released when the calling task ends: the
        server may drop a response that it has not begun to send.
        """
        own, total = self._reserved[team], self._reserved.total()
        teams = len(self._reserved) + (team not in self._reserved)
        if own and total + calls > self.limit and own + calls > self.limit // teams:
            raise Unavailable(
                f"{own} judge calls of the team are waiting already; try again later",
                code="overloaded",
                retry_after_s=self._retry_after_s(),
            )
        self._reserved[team] += calls
        reservation = QueueReservation(self, calls, team)
        if (task := asyncio.current_task()) is not None:
            task.add_done_callback(lambda _: reservation.release())
        return reservation

    def free(self, calls: int, team: str) -> None:
        """Release capacity that a team reserved."""
        self._reserved[team] -= calls
        # A team with none left must not count when the queue is divided.
        if self._reserved[team] <= 0:
            del self._reserved[team]

    def count_ended(self) -> None:
        """Count a call that has ended, for the estimate of ``Retry-After``."""
        now = asyncio.get_running_loop().time()
        self._ended.append(now)
        self._drop_old(now)

    def _retry_after_s(self) -> int:
        """Estimate when the reserved calls will have ended, at the rate of the last seconds."""
        self._drop_old(asyncio.get_running_loop().time())
        rate = len(self._ended) / RATE_WINDOW_S
        wait = math.ceil(self._reserved.total() / rate) if rate else MIN_RETRY_AFTER_S
        return max(MIN_RETRY_AFTER_S, min(MAX_RETRY_AFTER_S, wait))

    def _drop_old(self, now: float) -> None:
        while self._ended and self._ended[0] < now - RATE_WINDOW_S:
            self._ended.popleft()
