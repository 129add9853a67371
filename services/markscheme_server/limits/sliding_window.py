"""Count hits per window: shared through Redis, or an equal share per worker without it.

The strategy is the sliding window counter of ``limits``: the hits of the previous window count in
proportion to how much of it still lies within the last ``window_s`` seconds. It stores two numbers
per name whatever the limit, and does not admit twice the limit around a window's end.
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
"""Added to a wait: capacity returns just after the moment at which the window is still full."""

T = TypeVar("T")
Query = Callable[[SlidingWindowCounterRateLimiter, RateLimitItem], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class LimitState:
    """What a limit admits: ``remaining`` hits now, and when it admits more.

    ``retry_after_s``: seconds until the cost that was asked about fits; ``reset_s``: seconds until
    the whole limit is available.
    """

    remaining: int
    retry_after_s: float
    reset_s: float


class SlidingWindows:
    """The counters of one process and of the deployment.

    ``workers`` processes share a limit where there is no Redis. A hit counts in the shared window
    and in the worker's own: when a busy process takes Redis for down, its share is not fresh.
    """

    def __init__(
        self, *, workers: int = 1, redis: Redis | None = None, window_s: int = MINUTE_S
    ) -> None:
        self._workers, self._redis, self._window_s = workers, redis, window_s
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = (
            SlidingWindowCounterRateLimiter(_storage(redis)) if redis is not None else None
        )

    def with_window(self, window_s: int) -> "SlidingWindows":
        """Return empty counters of the same processes over another window."""
        return SlidingWindows(workers=self._workers, redis=self._redis, window_s=window_s)

    async def hit(self, limit: int, cost: int, *names: str) -> bool:
        """Count ``cost``, at most the whole limit; return false if it does not fit."""
        share = self._share(limit)
        shared = await self._query(
            self._item(limit),
            lambda limiter, item: limiter.hit(item, *names, cost=min(cost, limit)),
        )
        if shared is not None and not shared:
            return False
        own = await self._own.hit(share, *names, cost=min(cost, share.amount))
        return own if shared is None else shared

    async def limit_state(self, limit: int, cost: int, *names: str) -> LimitState:
        """Return the state of a limit for a request of ``cost``, without counting it."""
        share = self._share(limit)
        return await self._query(
            self._item(limit), lambda limiter, item: _state(limiter, item, min(cost, limit), *names)
        ) or await _state(self._own, share, min(cost, share.amount), *names)

    def _share(self, limit: int) -> RateLimitItem:
        return self._item(max(1, limit // self._workers))

    def _item(self, limit: int) -> RateLimitItem:
        if self._window_s == MINUTE_S:
            return RateLimitItemPerMinute(limit)
        return RateLimitItemPerSecond(limit, self._window_s)

    async def _query(self, item: RateLimitItem, query: Query[T]) -> T | None:
        """Ask Redis; return ``None`` where there is none or it is down."""
        if self._shared is None or self._redis is None or not self._redis.is_up:
            return None
        shared = self._shared
        try:
            return await self._redis.run(lambda _: query(shared, item))
        except RedisUnavailable:
            return None


async def _state(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, cost: int, *names: str
) -> LimitState:
    counts = cast(SlidingWindowCounterSupport, limiter.storage)
    window_s = item.get_expiry()
    return limit_state(
        item.amount,
        cost,
        *await counts.get_sliding_window(item.key_for(*names), window_s),
        window_s=window_s,
    )


def limit_state(
    limit: int,
    cost: int,
    previous: int,
    previous_s: float,
    current: int,
    current_s: float,
    *,
    window_s: int = MINUTE_S,
) -> LimitState:
    """Compute the state of a limit from the hits of the ``previous`` and ``current`` window.

    ``previous_s`` and ``current_s`` are the seconds until each window stops counting. The previous
    window counts ⌊previous · previous_s / window_s⌋; the current one counts in full until it
    becomes the previous one.
    """
    remaining = max(0, limit - floor(previous * previous_s / window_s) - current)
    reset_s = current_s if current else previous_s if previous else 0.0
    if remaining >= cost:
        return LimitState(remaining, 0.0, reset_s)
    if current + cost <= limit:
        # It fits within this window, once the previous one has decayed enough.
        wait_s = _decay_s(previous, previous_s, limit - current - cost, window_s)
    else:
        # It fits only when the current window has become the previous one, and has decayed.
        # `current_s` includes the window in which it counts as the previous one.
        wait_s = current_s - window_s + _decay_s(current, window_s, limit - cost, window_s)
    return LimitState(remaining, wait_s, reset_s)


def _decay_s(count: int, expires_s: float, target: int, window_s: int) -> float:
    """Return the seconds until a window of ``count`` hits counts ``target``."""
    # The count is rounded down: it is `target` as soon as it falls below `target + 1`.
    return max(0.0, expires_s - (target + 1) * window_s / count) + TICK_S


def _storage(redis: Redis) -> RedisStorage:
    return RedisStorage(
        "async+redis://",
        implementation="redispy",
        connection_pool=redis.client.connection_pool,  # type: ignore[arg-type]
        key_prefix="markscheme:quota",
        # `Redis.run` expects Redis's own exceptions.
        wrap_exceptions=False,
    )
