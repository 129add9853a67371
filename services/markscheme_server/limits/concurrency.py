"""Limit the calls in flight at a judge over the whole deployment, fairly between teams.

With Redis, processes share the slots: each reports how many it uses and wants, and is allotted a
number. While another process waits in vain, a process that holds more than an even share gets slots
taken back as its calls end. Without Redis, or while it is down, each worker has an even share.
Within a process the teams take turns.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from markscheme_server.domain.fairness import FairQueue
from markscheme_server.limits.redis import Redis, RedisUnavailable

LEASE_S = 3.0
"""A process that has not reported for this long loses its slots."""
TICK_S, RENEW_S = 0.02, 0.1
"""How soon slots are given back that are too many; how often a busy process reports."""
SPARE_SLOTS = 4
"""Slots held in reserve while no other process waits, so that a call needs no round trip."""
# A process's row is `held:wanted:expires`. While another process wants more than it holds, one gets
# no more than an even share. `held` is at least what is in use, because a call in flight cannot be
# taken back.
_ALLOT = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local me, used, wanted, size = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, comfortable = tonumber(ARGV[5]), tonumber(ARGV[6])
local rows, others, live, contended = redis.call('HGETALL', KEYS[1]), 0, 1, false
for i = 1, #rows, 2 do
  local held, want, expires = string.match(rows[i + 1], '(%d+):(%d+):([%d.]+)')
  if tonumber(expires) < now then
    redis.call('HDEL', KEYS[1], rows[i])
  elseif rows[i] ~= me then
    others = others + tonumber(held)
    live = live + 1
    contended = contended or tonumber(want) > tonumber(held)
  end
end
local most = size - others
if contended then most = math.min(most, math.max(1, math.floor(size / live))) end
local mine = math.max(0, math.min(contended and wanted or comfortable, most))
local row = string.format('%d:%d:%.6f', math.max(used, mine), wanted, now + lease)
redis.call('HSET', KEYS[1], me, row)
redis.call('EXPIRE', KEYS[1], 60)
return mine
"""


class ConcurrencyLimiter:
    """``size`` slots for calls to one judge; without Redis, ``workers`` processes divide them."""

    def __init__(
        self, name: str, size: int, *, owner: str, workers: int = 1, redis: Redis | None = None
    ) -> None:
        self._key = f"markscheme:slots:{name}"
        self._size, self._owner, self._redis = size, owner, redis
        self._even_share = max(1, size // workers)
        self._slots = FairQueue(
            # With Redis a process has no slot before it is allotted one.
            0 if redis is not None else self._even_share,
            on_change=self._on_change,
        )
        self._sync_task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        """Set when this process has too few slots, or too many."""

    @property
    def used(self) -> int:
        """Slots that this process uses."""
        return self._slots.used

    @asynccontextmanager
    async def slot(self, priority: int, team: str = "") -> AsyncIterator[None]:
        """Hold a slot for the block.

        Teams take turns; within a team the lowest ``priority`` value is served first.
        """
        async with self._slots.slot(team, priority):
            yield

    def _on_change(self) -> None:
        if self._is_short or self._has_surplus:
            self._changed.set()
        if (
            self._redis is not None
            and (self._sync_task is None or self._sync_task.done())
            and self._is_active
        ):
            self._sync_task = asyncio.ensure_future(self._sync(self._redis))

    @property
    def _is_short(self) -> bool:
        return self._slots.waiting > 0 and self._slots.size < self._size

    @property
    def _has_surplus(self) -> bool:
        # From twice the reserve on: `_allot` itself asks for the reserve.
        wanted = self._slots.used + self._slots.waiting
        return self._slots.size > wanted + 2 * SPARE_SLOTS

    @property
    def _is_active(self) -> bool:
        # Slots that are only held count too: they have to be given back.
        return self._slots.waiting > 0 or self._slots.used > 0 or self._slots.size > 0

    async def _sync(self, redis: Redis) -> None:
        """Match the allotted slots to what this process uses and wants, until it needs none."""
        loop, slots = asyncio.get_running_loop(), self._slots
        while self._is_active:
            wanted = min(self._size, slots.used + slots.waiting)
            slots.resize(await self._allot(redis, wanted))
            next_tick = loop.time() + TICK_S
            self._changed.clear()
            # Without a change report now and then, to learn whether other processes wait.
            wait_s = TICK_S if self._is_short or self._has_surplus else RENEW_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
                    if not self._is_short:
                        await asyncio.sleep(next_tick - loop.time())

    async def _allot(self, redis: Redis, wanted: int) -> int:
        comfortable = wanted + (SPARE_SLOTS if wanted else 0)
        arguments = (self._owner, self._slots.used, wanted, self._size, LEASE_S, comfortable)
        try:
            return int(
                await redis.run(lambda client: client.eval(_ALLOT, 1, self._key, *arguments))
            )
        except RedisUnavailable:
            return self._even_share if wanted else 0

    async def aclose(self) -> None:
        """Stop reporting; the lease then frees the slots. Call it before closing Redis."""
        if self._sync_task is not None:
            self._sync_task.cancel()
            await asyncio.gather(self._sync_task, return_exceptions=True)
