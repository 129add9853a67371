"""Places at a judge: so many calls in flight over the whole deployment, and whose turn it is.

With a Redis the processes share one allowance: each says how many places it uses and wants, and is allotted some;
where another one waits in vain, who holds more than an even share gets it back down as its calls end. Without one, or
while it is gone, each worker has its even part of the allowance.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from markscheme_server.cache.redis import Redis, RedisGone

LEASE_S = 3.0
"""After this a process that said nothing has no places any more."""
TICK_S, RENEW_S = 0.02, 0.1
SPARE = 4
"""Places kept at hand beyond those in use while nobody else waits, so that a call need not ask for one first."""
_SHARE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local me, used, wanted, size = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rows, others, live, hungry = redis.call('HGETALL', KEYS[1]), 0, 1, false
for i = 1, #rows, 2 do
  local held, want, till = string.match(rows[i + 1], '(%d+):(%d+):([%d.]+)')
  if tonumber(till) < now then
    redis.call('HDEL', KEYS[1], rows[i])
  elseif rows[i] ~= me then
    others = others + tonumber(held)
    live = live + 1
    hungry = hungry or tonumber(want) > tonumber(held)
  end
end
local most = size - others
if hungry then most = math.min(most, math.max(1, math.floor(size / live))) end
local mine = math.max(0, math.min(hungry and wanted or tonumber(ARGV[6]), most))
redis.call('HSET', KEYS[1], me, string.format('%d:%d:%.6f', math.max(used, mine), wanted, now + tonumber(ARGV[5])))
redis.call('EXPIRE', KEYS[1], 60)
return mine
"""


class Places:
    """``size`` places of a judge; ``workers`` processes divide them when no Redis says otherwise."""

    def __init__(self, name: str, size: int, *, owner: str, workers: int = 1, redis: Redis | None = None) -> None:
        self._key, self._size, self._owner, self._redis = f"markscheme:places:{name}", size, owner, redis
        self._alone = max(1, size // workers)
        self._allotted = 0 if redis is not None else self._alone
        self._used = 0
        self._order = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._sharing: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    @property
    def used(self) -> int:
        """Places taken by this process."""
        return self._used

    @asynccontextmanager
    async def hold(self, turn: int) -> AsyncIterator[None]:
        """A place for the length of the block; the lowest ``turn`` that waits is served first."""
        await self._take(turn)
        try:
            yield
        finally:
            self._used -= 1
            self._serve()

    async def _take(self, turn: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (turn, next(self._order), place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._used -= 1
            self._serve()
            raise

    def _serve(self) -> None:
        while self._queue and (self._queue[0][2].done() or self._used < self._allotted):
            place = heapq.heappop(self._queue)[2]
            if not place.done():
                self._used += 1
                place.set_result(None)
        if self._queue and self._allotted < self._size:
            self._asked.set()
        if self._redis is not None and (self._sharing is None or self._sharing.done()) and self._restless:
            self._sharing = asyncio.ensure_future(self._share(self._redis))

    @property
    def _restless(self) -> bool:
        return bool(self._queue) or self._used > 0 or self._allotted > 0

    async def _share(self, redis: Redis) -> None:
        """Keep our part of the allowance in step with what we use and want, until there is neither."""
        loop = asyncio.get_running_loop()
        renewal = 0.0
        while self._restless:
            wanted = min(self._size, self._used + len(self._queue))
            # An unmet wish and a surplus are told at the next tick; else we ask now and then whether others wait.
            if wanted > self._allotted or self._allotted > wanted + 2 * SPARE or loop.time() >= renewal:
                self._allotted = await self._ask(redis, wanted)
                renewal = loop.time() + RENEW_S
                self._serve()
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._asked.wait()

    async def _ask(self, redis: Redis, wanted: int) -> int:
        used, comfortable = self._used, wanted + (SPARE if wanted else 0)
        try:
            return int(await redis.ask(lambda client: client.eval(
                _SHARE, 1, self._key, self._owner, used, wanted, self._size, LEASE_S, comfortable)))
        except RedisGone:
            return self._alone if wanted else 0

    async def aclose(self) -> None:
        """Stop telling others about us; the lease does the rest. Before the Redis is closed: it is asked meanwhile."""
        if self._sharing is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
