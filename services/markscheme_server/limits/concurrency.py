"""ConcurrencyLimiter at a judge: so many calls in flight over the whole deployment, shared fairly between teams.

With a Redis the processes share one allowance: each says how many places it uses and wants, and is allotted some;
where another one waits in vain, who holds more than an even share gets it back down as its calls end. Without one, or
while it is gone, each worker has its even part of the allowance. Within a process teams take turns.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from markscheme_server.domain.fairness import FairShares
from markscheme_server.limits.redis import Redis, RedisUnavailable

LEASE_S = 3.0
"""After this a process that said nothing has no places any more."""
TICK_S, RENEW_S = 0.02, 0.1
SPARE = 4
"""ConcurrencyLimiter kept at hand beyond those in use while nobody else waits, so that a call need not ask for one first."""
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


class ConcurrencyLimiter:
    """``size`` places of a judge; ``workers`` processes divide them when no Redis says otherwise."""

    def __init__(
        self, name: str, size: int, *, owner: str, workers: int = 1, redis: Redis | None = None
    ) -> None:
        self._key, self._size, self._owner, self._redis = (
            f"markscheme:places:{name}",
            size,
            owner,
            redis,
        )
        self._alone = max(1, size // workers)
        self._shares = FairShares(
            0 if redis is not None else self._alone, changed=self._ask_for_more
        )
        self._sharing: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    @property
    def used(self) -> int:
        """ConcurrencyLimiter taken by this process."""
        return self._shares.used

    @asynccontextmanager
    async def hold(self, turn: int, team: str = "") -> AsyncIterator[None]:
        """A place for the length of the block. Teams take turns; within one the lowest ``turn`` is served first."""
        async with self._shares.hold(team, turn):
            yield

    def _ask_for_more(self) -> None:
        if self._shares.wanted and self._shares.size < self._size:
            self._asked.set()
        if (
            self._redis is not None
            and (self._sharing is None or self._sharing.done())
            and self._restless
        ):
            self._sharing = asyncio.ensure_future(self._share(self._redis))

    @property
    def _restless(self) -> bool:
        return self._shares.wanted > 0 or self._shares.used > 0 or self._shares.size > 0

    async def _share(self, redis: Redis) -> None:
        """Keep our part of the allowance in step with what we use and want, until there is neither."""
        loop, shares = asyncio.get_running_loop(), self._shares
        renewal = 0.0
        while self._restless:
            wanted = min(self._size, shares.used + shares.wanted)
            # An unmet wish and a surplus are told at the next tick; else we ask now and then whether others wait.
            if wanted > shares.size or shares.size > wanted + 2 * SPARE or loop.time() >= renewal:
                allotted = await self._ask(redis, wanted)
                renewal = loop.time() + RENEW_S
                shares.resize(allotted)
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._asked.wait()

    async def _ask(self, redis: Redis, wanted: int) -> int:
        used, comfortable = self._shares.used, wanted + (SPARE if wanted else 0)
        try:
            return int(
                await redis.ask(
                    lambda client: client.eval(
                        _SHARE,
                        1,
                        self._key,
                        self._owner,
                        used,
                        wanted,
                        self._size,
                        LEASE_S,
                        comfortable,
                    )
                )
            )
        except RedisUnavailable:
            return self._alone if wanted else 0

    async def aclose(self) -> None:
        """Stop telling others about us; the lease does the rest. Before the Redis is closed: it is asked meanwhile."""
        if self._sharing is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
