"""Counts by the minute or another window: over the whole deployment with a Redis, an even part of them for each worker
without.

The strategy is the sliding window counter of ``limits``: what the last minute counted weighs as much as of that minute
still lies within 60 s. Two numbers a name whatever the limit, and no double helping where two minutes meet.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import floor
from typing import TypeVar, cast

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage, SlidingWindowCounterSupport
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from markscheme_server.limits.redis import Redis, RedisUnavailable

MINUTE_S = 60
TICK_S = 0.001
"""LimitState comes back just after the moment at which the count is still full."""

T = TypeVar("T")
Question = Callable[[SlidingWindowCounterRateLimiter, RateLimitItem], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class LimitState:
    """What a limit lets through: ``remaining`` now, what was asked for in ``wait_s``, all of it in ``whole_s``."""

    remaining: int
    wait_s: float
    whole_s: float


class SlidingWindows:
    """The counts of one process and of the deployment. ``workers``: who shares a limit where there is no Redis.

    What is taken of the shared count is taken of the worker's part too: a Redis that is called gone for a second, as a
    busy process does, does not hand everybody a second helping.
    """

    def __init__(
        self, *, workers: int = 1, redis: Redis | None = None, window_s: int = MINUTE_S
    ) -> None:
        self._workers, self._redis, self._window_s = workers, redis, window_s
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = (
            SlidingWindowCounterRateLimiter(_storage(redis)) if redis is not None else None
        )

    def of(self, window_s: int) -> "SlidingWindows":
        """Counts of the same processes over another window, from nothing."""
        return SlidingWindows(workers=self._workers, redis=self._redis, window_s=window_s)

    async def take(self, limit: int, cost: int, *names: str) -> bool:
        """Take ``cost`` of a limit, at most all there can be; false: there is no room for it."""
        part = self._part(limit)
        shared = await self._ask(
            self._item(limit),
            lambda limiter, item: limiter.hit(item, *names, cost=min(cost, limit)),
        )
        if shared is not None and not shared:
            return False
        own = await self._own.hit(part, *names, cost=min(cost, part.amount))
        return own if shared is None else shared

    async def room(self, limit: int, cost: int, *names: str) -> LimitState:
        """The room that a limit has for whoever wants ``cost``."""
        part = self._part(limit)
        return await self._ask(
            self._item(limit), lambda limiter, item: _room(limiter, item, min(cost, limit), *names)
        ) or await _room(self._own, part, min(cost, part.amount), *names)

    def _part(self, limit: int) -> RateLimitItem:
        return self._item(max(1, limit // self._workers))

    def _item(self, limit: int) -> RateLimitItem:
        minute = self._window_s == MINUTE_S
        return (
            RateLimitItemPerMinute(limit)
            if minute
            else RateLimitItemPerSecond(limit, self._window_s)
        )

    async def _ask(self, item: RateLimitItem, question: Question[T]) -> T | None:
        """What Redis says; ``None`` where there is none, or it is gone."""
        if self._shared is None or self._redis is None or not self._redis.up:
            return None
        shared = self._shared
        try:
            return await self._redis.ask(lambda _: question(shared, item))
        except RedisUnavailable:
            return None


async def _room(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, cost: int, *names: str
) -> LimitState:
    counts = cast(SlidingWindowCounterSupport, limiter.storage)
    window_s = item.get_expiry()
    return room(
        item.amount,
        cost,
        *await counts.get_sliding_window(item.key_for(*names), window_s),
        window_s=window_s,
    )


def room(
    limit: int,
    cost: int,
    previous: int,
    previous_s: float,
    current: int,
    current_s: float,
    *,
    window_s: int = MINUTE_S,
) -> LimitState:
    """The room that two windows' counts leave, with the seconds until each weighs nothing.

    The last window's weighs ⌊previous · previous_s / window_s⌋; the present one's all, until it is the last one.
    """
    remaining = max(0, limit - floor(previous * previous_s / window_s) - current)
    whole_s = current_s if current else previous_s if previous else 0.0
    if remaining >= cost:
        return LimitState(remaining, 0.0, whole_s)
    if current + cost <= limit:
        return LimitState(
            remaining, _falls(previous, previous_s, limit - current - cost, window_s), whole_s
        )
    return LimitState(
        remaining, current_s - window_s + _falls(current, window_s, limit - cost, window_s), whole_s
    )


def _falls(count: int, weighs_s: float, to: int, window_s: int) -> float:
    """After how many seconds a last window's ``count`` weighs ``to``, when it weighs nothing in ``weighs_s``."""
    return max(0.0, weighs_s - (to + 1) * window_s / count) + TICK_S


def _storage(redis: Redis) -> RedisStorage:
    return RedisStorage(
        "async+redis://",
        implementation="redispy",
        connection_pool=redis.client.connection_pool,  # type: ignore[arg-type]
        key_prefix="markscheme:quota",
        wrap_exceptions=False,
    )
