"""Calls and tokens a minute: over the whole deployment with a Redis, an even part of them for each worker without."""

import asyncio
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from markscheme_server.cache.redis import Redis, RedisGone

LEAST_WAIT_S = 0.05


class Quotas:
    """``rpm`` calls and ``tpm`` tokens a minute of one judge; ``None``: no such limit."""

    def __init__(self, name: str, *, rpm: int | None, tpm: int | None, workers: int = 1,
                 redis: Redis | None = None) -> None:
        self._name, self._rpm, self._tpm, self._workers, self._redis = name, rpm, tpm, workers, redis
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = SlidingWindowCounterRateLimiter(_storage(redis)) if redis is not None else None

    async def take(self, tokens: int) -> None:
        """Return when a call of about ``tokens`` tokens is within the limits."""
        if self._rpm is not None:
            await self._wait("calls", self._rpm, 1)
        if self._tpm is not None:
            await self._wait("tokens", self._tpm, min(tokens, self._tpm))

    async def _wait(self, what: str, limit: int, cost: int) -> None:
        while True:
            if (wait_s := await self._hit(what, limit, cost)) is None:
                return
            await asyncio.sleep(max(LEAST_WAIT_S, wait_s))

    async def _hit(self, what: str, limit: int, cost: int) -> float | None:
        """Take ``cost``, or say after how many seconds to try again."""
        if self._shared is not None and self._redis is not None and self._redis.up:
            shared = self._shared
            try:
                return await self._redis.ask(lambda _: _try(shared, RateLimitItemPerMinute(limit), cost,
                                                            self._name, what))
            except RedisGone:
                pass
        part = max(1, limit // self._workers)
        return await _try(self._own, RateLimitItemPerMinute(part), min(cost, part), self._name, what)


async def _try(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItemPerMinute, cost: int,
               *names: str) -> float | None:
    if await limiter.hit(item, *names, cost=cost):
        return None
    stats = await limiter.get_window_stats(item, *names)
    # The window slides: some room comes back before it has wholly passed.
    return min(1.0, max(0.0, stats.reset_time - time.time()))


def _storage(redis: Redis) -> RedisStorage:
    return RedisStorage("async+redis://", implementation="redispy", connection_pool=redis.client.connection_pool,  # type: ignore[arg-type]
                        key_prefix="markscheme:quota", wrap_exceptions=False)
