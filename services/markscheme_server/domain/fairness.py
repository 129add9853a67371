"""Fair shares of something that only so many can use at a time: teams take turns.

A free place goes to the waiting team that uses the fewest, among equals to the one that has waited longest since it
was last served; within a team the lowest turn goes first. A team alone has all of it.
"""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_Waiting = list[tuple[int, int, "asyncio.Future[None]"]]


class FairShares:
    """``size`` places, which may be changed at any time; ``most`` of them for one team, where that is set.

    ``changed`` is called after each place that was taken, given back or asked for.
    """

    def __init__(
        self, size: int, *, most: int | None = None, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._size, self._most, self._changed = size, most, changed
        self._numbers = itertools.count(1)
        self._waiting: dict[str, _Waiting] = {}
        self._wanted = 0
        self._used: Counter[str] = Counter()
        self._served: dict[str, int] = {}
        """When a team was last served, or came; for as long as it uses or wants places."""

    @property
    def size(self) -> int:
        """How many places there are."""
        return self._size

    def resize(self, size: int) -> None:
        """Have more places, or fewer once those beyond are given back."""
        self._size = size
        self._serve()

    @property
    def used(self) -> int:
        """ConcurrencyLimiter in use."""
        return self._used.total()

    @property
    def wanted(self) -> int:
        """How many wait for a place."""
        return self._wanted

    async def take(self, team: str, turn: int) -> None:
        """Wait for a place. It must be given back."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting.setdefault(team, []), (turn, next(self._numbers), place))
        self._served.setdefault(team, next(self._numbers))
        self._wanted += 1
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._wanted -= 1
                self._serve()
            else:
                self.give_back(team)
            raise

    @asynccontextmanager
    async def hold(self, team: str, turn: int = 0) -> AsyncIterator[None]:
        """A place for the length of the block."""
        await self.take(team, turn)
        try:
            yield
        finally:
            self.give_back(team)

    def give_back(self, team: str) -> None:
        """End the use of a place."""
        self._used[team] -= 1
        if not self._used[team]:
            del self._used[team]
        self._serve()
        if team not in self._used and team not in self._waiting:
            self._served.pop(team, None)

    def _serve(self) -> None:
        while self.used < self._size and (team := self._next()) is not None:
            place = heapq.heappop(self._waiting[team])[2]
            self._wanted -= 1
            self._used[team] += 1
            self._served[team] = next(self._numbers)
            place.set_result(None)
        self._changed()

    def _next(self) -> str | None:
        """The team whose turn it is, of those that wait and may have one more."""
        for team, waiting in list(self._waiting.items()):
            while waiting and waiting[0][2].done():
                heapq.heappop(waiting)
            if not waiting:
                del self._waiting[team]
                if team not in self._used:
                    self._served.pop(team, None)
        able = [
            team for team in self._waiting if self._most is None or self._used[team] < self._most
        ]
        return min(able, key=lambda team: (self._used[team], self._served[team]), default=None)


class Pace:
    """Bounds what is computed in one turn of the event loop, by all tasks together: others come in between.

    A pause in each task alone would not do, since all that are ready run before anyone else does.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._door = FairShares(1)
        self._renewing = False

    async def step(self, size: int, team: str, turn: int = 0) -> None:
        """Return when work of this size may be done without a further pause; teams take turns."""
        if self._left < size:
            async with self._door.hold(team, turn):
                if self._left < size:
                    await asyncio.sleep(0)
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)
        self._left -= size

    def _renew(self) -> None:
        self._renewing, self._left = False, self._most
