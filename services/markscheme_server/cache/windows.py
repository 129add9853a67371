"""Counts by the minute: over the whole deployment with a Redis, an even part of them for each worker without.

The strategy is the sliding window counter of ``limits``: what the last minute counted weighs as much as of that minute
still lies within 60 s. Two numbers a name whatever the limit, and no double helping where two minutes meet.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import floor
from typing import TypeVar, cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, SlidingWindowCounterSupport
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from markscheme_server.cache.redis import Redis, RedisGone

MINUTE_S = 60
TICK_S = 0.001
"""Room comes back just after the moment at which the count is still full."""

T = TypeVar("T")
Question = Callable[[SlidingWindowCounterRateLimiter, RateLimitItemPerMinute], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Room:
    """What a limit lets through: ``remaining`` now, what was asked for in ``wait_s``, all of it in ``whole_s``."""

    remaining: int
    wait_s: float
    whole_s: float


class Windows:
    """The counts of one process and of the deployment. ``workers``: who shares a limit where there is no Redis.

    What is taken of the shared count is taken of the worker's part too: a Redis that is called gone for a second, as a
    busy process does, does not hand everybody a second helping.
    """

    def __init__(self, *, workers: int = 1, redis: Redis | None = None) -> None:
        self._workers, self._redis = workers, redis
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = SlidingWindowCounterRateLimiter(_storage(redis)) if redis is not None else None

    async def take(self, limit: int, cost: int, *names: str) -> bool:
        """Take ``cost`` of a limit, at most all there can be; false: there is no room for it."""
        part = self._part(limit)
        shared = await self._ask(limit, lambda limiter, item: limiter.hit(item, *names, cost=min(cost, limit)))
        if shared is not None and not shared:
            return False
        own = await self._own.hit(part, *names, cost=min(cost, part.amount))
        return own if shared is None else shared

    async def room(self, limit: int, cost: int, *names: str) -> Room:
        """The room that a limit has for whoever wants ``cost``."""
        part = self._part(limit)
        return (await self._ask(limit, lambda limiter, item: _room(limiter, item, min(cost, limit), *names))
                or await _room(self._own, part, min(cost, part.amount), *names))

    def _part(self, limit: int) -> RateLimitItemPerMinute:
        return RateLimitItemPerMinute(max(1, limit // self._workers))

    async def _ask(self, limit: int, question: Question[T]) -> T | None:
        """What Redis says; ``None`` where there is none, or it is gone."""
        if self._shared is None or self._redis is None or not self._redis.up:
            return None
        shared = self._shared
        try:
            return await self._redis.ask(lambda _: question(shared, RateLimitItemPerMinute(limit)))
        except RedisGone:
            return None


async def _room(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItemPerMinute, cost: int,
                *names: str) -> Room:
    counts = cast(SlidingWindowCounterSupport, limiter.storage)
    return room(item.amount, cost, *await counts.get_sliding_window(item.key_for(*names), MINUTE_S))


def room(limit: int, cost: int, previous: int, previous_s: float, current: int, current_s: float) -> Room:
    """The room that two minutes' counts leave, with the seconds until each weighs nothing.

    The last minute's weighs ⌊previous · previous_s / 60⌋; the present one's all, until it is the last one.
    """
    remaining = max(0, limit - floor(previous * previous_s / MINUTE_S) - current)
    whole_s = current_s if current else previous_s if previous else 0.0
    if remaining >= cost:
        return Room(remaining, 0.0, whole_s)
    if current + cost <= limit:
        return Room(remaining, _falls(previous, previous_s, limit - current - cost), whole_s)
    return Room(remaining, current_s - MINUTE_S + _falls(current, MINUTE_S, limit - cost), whole_s)


def _falls(count: int, weighs_s: float, to: int) -> float:
    """After how many seconds a last minute's ``count`` weighs ``to``, when it weighs nothing in ``weighs_s``."""
    return max(0.0, weighs_s - (to + 1) * MINUTE_S / count) + TICK_S


def _storage(redis: Redis) -> RedisStorage:
    return RedisStorage("async+redis://", implementation="redispy", connection_pool=redis.client.connection_pool,  # type: ignore[arg-type]
                        key_prefix="markscheme:quota", wrap_exceptions=False)
