"""Limit the calls and tokens per minute of a judge."""

import asyncio

from markscheme_server.domain.fairness import FairQueue
from markscheme_server.limits.sliding_window import SlidingWindows

MIN_WAIT_S, MAX_WAIT_S = 0.05, 1.0


class Quotas:
    """Allow ``rpm`` calls and ``tpm`` tokens per minute to one judge; ``None``: no limit."""

    def __init__(
        self, name: str, windows: SlidingWindows, *, rpm: int | None, tpm: int | None
    ) -> None:
        self._name, self._windows, self._rpm, self._tpm = name, windows, rpm, tpm
        self._queue = FairQueue(1)

    async def acquire(self, tokens: int, priority: int, team: str) -> None:
        """Wait until a call of about ``tokens`` tokens fits both limits, and count it.

        One call at a time waits for capacity; the teams take turns.
        """
        if self._rpm is None and self._tpm is None:
            return
        async with self._queue.slot(team, priority):
            if self._rpm is not None:
                await self._wait("calls", self._rpm, 1)
            if self._tpm is not None:
                await self._wait("tokens", self._tpm, tokens)

    async def _wait(self, unit: str, limit: int, cost: int) -> None:
        while not await self._windows.hit(limit, cost, self._name, unit):
            state = await self._windows.limit_state(limit, cost, self._name, unit)
            await asyncio.sleep(min(max(MIN_WAIT_S, state.retry_after_s), MAX_WAIT_S))
