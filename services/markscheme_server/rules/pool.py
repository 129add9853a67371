"""Threads for checks: no others of the process wait for them, and teams take turns.

A thread cannot be stopped. So work is handed in by small pieces, and one thread is always out of reach of a team that
holds all others.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from markscheme_server.domain.fairness import FairShares

T = TypeVar("T")


class CheckPool:
    """``threads`` of them, one more than there are cores where nothing is said; at least two."""

    def __init__(self, threads: int | None = None) -> None:
        threads = max(2, threads or (os.cpu_count() or 1) + 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="checks")
        self._shares = FairShares(threads, most=threads - 1)

    async def run(self, piece: Callable[[], T], *, team: str, turn: int) -> T:
        """What ``piece`` returns, run in a thread when it is the team's turn. A caller that leaves does not stop it."""
        await self._shares.take(team, turn)
        loop = asyncio.get_running_loop()

        def done(_: "Future[T]") -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._shares.give_back, team)

        try:
            future = self._threads.submit(piece)
        except RuntimeError:
            self._shares.give_back(team)
            raise
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
