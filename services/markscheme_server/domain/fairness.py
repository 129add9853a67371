"""Fair sharing of a limited resource between teams.

Teams are served as in fair queueing: a free slot goes to the waiting team that holds the fewest
slots, and among equals to the one that was served longest ago. Within a team the lowest priority
value goes first. A team that is alone may hold all slots.
"""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_Waiters = list[tuple[int, int, "asyncio.Future[None]"]]
"""A heap of (priority, order of arrival, future)."""


class FairQueue:
    """A semaphore with `size` slots that teams share fairly.

    `max_per_team`: the most slots that one team may hold; `None`: all. `on_change` is called
    whenever a slot was taken, released or asked for.
    """

    def __init__(
        self,
        size: int,
        *,
        max_per_team: int | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._size, self._max_per_team, self._on_change = size, max_per_team, on_change
        self._numbers = itertools.count(1)
        self._waiters: dict[str, _Waiters] = {}
        self._waiting = 0
        self._total = 0
        self._used: Counter[str] = Counter()
        # When a team was last served, or arrived; only for teams that hold or want slots.
        self._last_served: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The number of slots."""
        return self._size

    @property
    def used(self) -> int:
        """The number of slots in use."""
        return self._total

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a slot."""
        return self._waiting

    def resize(self, size: int) -> None:
        """Change the number of slots. Slots in use beyond it stay in use until released."""
        self._size = size
        self._serve()

    async def acquire(self, team: str, priority: int) -> None:
        """Wait for a slot. The caller must `release` it."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (priority, next(self._numbers), slot)
        heapq.heappush(self._waiters.setdefault(team, []), waiter)
        # A team that arrives queues behind those that have waited longer.
        self._last_served.setdefault(team, next(self._numbers))
        self._waiting += 1
        self._serve()
        try:
            await slot
        except asyncio.CancelledError:
            if slot.cancelled():
                self._waiting -= 1
                self._serve()
            else:  # the slot was assigned to us before the cancellation arrived
                self.release(team)
            raise

    @asynccontextmanager
    async def slot(self, team: str, priority: int = 0) -> AsyncIterator[None]:
        """Hold a slot for the length of the block."""
        await self.acquire(team, priority)
        try:
            yield
        finally:
            self.release(team)

    def release(self, team: str) -> None:
        """Give back a slot of the team."""
        self._total -= 1
        self._used[team] -= 1
        if not self._used[team]:
            del self._used[team]
        self._serve()
        # Idle teams are forgotten, or the table would grow with every team ever served.
        if team not in self._used and team not in self._waiters:
            self._last_served.pop(team, None)

    def _serve(self) -> None:
        while self.used < self._size and (team := self._next_team()) is not None:
            slot = heapq.heappop(self._waiters[team])[2]
            self._waiting -= 1
            self._total += 1
            self._used[team] += 1
            self._last_served[team] = next(self._numbers)
            slot.set_result(None)
        self._on_change()

    def _next_team(self) -> str | None:
        """Return the team to serve next, of those that wait and may hold one slot more."""
        for team, waiters in list(self._waiters.items()):
            while waiters and waiters[0][2].done():  # cancelled
                heapq.heappop(waiters)
            if not waiters:
                del self._waiters[team]
                if team not in self._used:
                    self._last_served.pop(team, None)
        eligible = [
            team
            for team in self._waiters
            if self._max_per_team is None or self._used[team] < self._max_per_team
        ]
        return min(
            eligible, key=lambda team: (self._used[team], self._last_served[team]), default=None
        )


class LoopThrottle:
    """Limits how much all tasks together compute in one iteration of the event loop.

    `limit` is in any unit of work. Pausing in each task alone would not help: the loop runs all
    tasks that are ready before it looks at the network again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._queue = FairQueue(1)
        self._renewing = False

    async def wait(self, size: int, team: str, priority: int = 0) -> None:
        """Return when work of this size may be done; teams are served fairly."""
        if self._left < size:
            async with self._queue.slot(team, priority):
                if self._left < size:  # the limit may have been renewed while we waited
                    await asyncio.sleep(0)
        # Once in an iteration of the loop, however many tasks compute in it.
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)
        # May fall below 0: work larger than the limit must be done too, if alone.
        self._left -= size

    def _renew(self) -> None:
        self._renewing, self._left = False, self._limit
