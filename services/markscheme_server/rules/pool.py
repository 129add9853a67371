"""A thread pool for checks, apart from the process's other threads. Teams take turns.

A thread cannot be stopped. Work therefore comes in short slices, and one team can never use all
threads.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from markscheme_server.domain.fairness import FairQueue

T = TypeVar("T")


class CheckPool:
    """``threads`` threads, at least two; by default one more than there are cores."""

    def __init__(self, threads: int | None = None) -> None:
        threads = max(2, threads or (os.cpu_count() or 1) + 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="checks")
        self._slots = FairQueue(threads, max_per_team=threads - 1)

    async def run(self, work: Callable[[], T], *, team: str, priority: int) -> T:
        """Run ``work`` in a thread when it is the team's turn; return its result.

        Cancelling the caller does not stop it.
        """
        await self._slots.acquire(team, priority)
        loop = asyncio.get_running_loop()

        def done(_: "Future[T]") -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._slots.release, team)

        try:
            future = self._threads.submit(work)
        except RuntimeError:
            self._slots.release(team)
            raise
        # The slot is free when the thread is, which may be long after its caller has left.
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancel work that has not started."""
        self._threads.shutdown(wait=False, cancel_futures=True)
