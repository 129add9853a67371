"""Calls and tokens a minute of a judge."""

import asyncio

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from markscheme_server.cache.windows import Windows, room_of

LEAST_WAIT_S, MOST_WAIT_S = 0.05, 1.0


class Quotas:
    """``rpm`` calls and ``tpm`` tokens a minute of one judge; ``None``: no such limit."""

    def __init__(self, name: str, windows: Windows, *, rpm: int | None, tpm: int | None) -> None:
        self._name, self._windows, self._rpm, self._tpm = name, windows, rpm, tpm

    async def take(self, tokens: int) -> None:
        """Return when a call of about ``tokens`` tokens is within the limits."""
        if self._rpm is not None:
            await self._wait("calls", self._rpm, 1)
        if self._tpm is not None:
            await self._wait("tokens", self._tpm, tokens)

    async def _wait(self, what: str, limit: int, cost: int) -> None:
        while True:
            wait_s = await self._windows.ask(
                limit, lambda limiter, item: _try(limiter, item, min(cost, item.amount), self._name, what))
            if wait_s is None:
                return
            await asyncio.sleep(min(max(LEAST_WAIT_S, wait_s), MOST_WAIT_S))


async def _try(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItemPerMinute, cost: int,
               *names: str) -> float | None:
    """Take ``cost``, or say after how many seconds to try again."""
    if await limiter.hit(item, *names, cost=cost):
        return None
    return (await room_of(limiter, item, cost, *names)).wait_s
