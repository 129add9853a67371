"""The bounded queue of a judge's calls: admitted and not done, shared by teams."""

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass, field

from markscheme_server.errors import Unavailable

RATE_WINDOW_S = 10.0
RETRY_AFTER_LEAST_S, OVERLOADED_MOST_S = 1, 60


@dataclass(slots=True)
class Reservation:
    """Calls that an admitted request may still make; see :meth:`Queue.reserve`."""

    queue: "Queue"
    calls: int
    team: str

    def release(self, calls: int | None = None) -> None:
        """Give back ``calls`` that are done, or whatever is left."""
        given = self.calls if calls is None else min(calls, self.calls)
        self.calls -= given
        self.queue.give_back(given, self.team)

    def __del__(self) -> None:
        """A caller that left before its answer was begun takes nothing with it."""
        self.release()


@dataclass(slots=True)
class Queue:
    """At most ``limit`` calls, but for what each team has a right to."""

    limit: int
    _reserved: Counter[str] = field(default_factory=Counter)
    _ended: deque[float] = field(default_factory=deque)

    def reserve(self, calls: int, team: str) -> Reservation:
        """Room for the calls of a team's request. Raises 503 with ``Retry-After`` when there is none.

        A team may fill the queue where it is alone. Each team has an even part of it for itself:
        whoever finds the queue full of others' calls may still fill that part, so that the queue
        may then hold more than its limit. A team that has nothing in it is let in whatever the size
        of its request: it could never be answered otherwise.
        """
        own, total = self._reserved[team], self._reserved.total()
        teams = len(self._reserved) + (team not in self._reserved)
        if own and total + calls > self.limit and own + calls > self.limit // teams:
            raise Unavailable(
                f"{own} judge calls of the team are waiting already; try again later",
                code="overloaded",
                retry_after_s=self._clears_in_s(),
            )
        self._reserved[team] += calls
        return Reservation(self, calls, team)

    def give_back(self, calls: int, team: str) -> None:
        """Room that a team's request no longer needs."""
        self._reserved[team] -= calls
        if self._reserved[team] <= 0:
            del self._reserved[team]

    def count_ended(self) -> None:
        """One call has ended."""
        now = asyncio.get_running_loop().time()
        self._ended.append(now)
        self._forget(now)

    def _clears_in_s(self) -> int:
        """When the calls that wait will be done at the rate of the last seconds."""
        self._forget(asyncio.get_running_loop().time())
        rate = len(self._ended) / RATE_WINDOW_S
        wait = math.ceil(self._reserved.total() / rate) if rate else RETRY_AFTER_LEAST_S
        return max(RETRY_AFTER_LEAST_S, min(OVERLOADED_MOST_S, wait))

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0] < now - RATE_WINDOW_S:
            self._ended.popleft()
