"""Single flight inside one process: identical work that is under way is waited for, not done twice."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """One running task a key. A waiter that is cancelled leaves the task alone: others may wait for it."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work`` for ``key``, shared by all who ask while it runs; failures are shared too."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(_start(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def _forget(self, key: str, done: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is done:
            del self._tasks[key]
        if not done.cancelled():
            done.exception()  # looked at, so that an abandoned failure is not reported as never retrieved

    async def drain(self) -> None:
        """Wait for what is under way: a verdict that is being paid for is still to be stored."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def _start(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
