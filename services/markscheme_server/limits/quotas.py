"""Calls and tokens a minute of a judge."""

import asyncio

from markscheme_server.domain.fairness import FairShares
from markscheme_server.limits.sliding_window import SlidingWindows

LEAST_WAIT_S, MOST_WAIT_S = 0.05, 1.0


class Quotas:
    """``rpm`` calls and ``tpm`` tokens a minute of one judge; ``None``: no such limit."""

    def __init__(
        self, name: str, windows: SlidingWindows, *, rpm: int | None, tpm: int | None
    ) -> None:
        self._name, self._windows, self._rpm, self._tpm = name, windows, rpm, tpm
        self._door = FairShares(1)

    async def take(self, tokens: int, turn: int, team: str) -> None:
        """Return when a call of about ``tokens`` tokens is within the limits. One call at a time waits for room, and
        teams take turns at that."""
        if self._rpm is None and self._tpm is None:
            return
        async with self._door.hold(team, turn):
            if self._rpm is not None:
                await self._wait("calls", self._rpm, 1)
            if self._tpm is not None:
                await self._wait("tokens", self._tpm, tokens)

    async def _wait(self, what: str, limit: int, cost: int) -> None:
        while not await self._windows.take(limit, cost, self._name, what):
            room = await self._windows.room(limit, cost, self._name, what)
            await asyncio.sleep(min(max(LEAST_WAIT_S, room.wait_s), MOST_WAIT_S))
