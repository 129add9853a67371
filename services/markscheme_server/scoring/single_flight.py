"""Single flight inside one process: identical work that is under way is waited for, not done twice."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from markscheme_server.domain.call_context import Deadline

GRACE_S = 0.1
"""Work ends itself at its deadline. Who waits for it waits this much longer, so that what it came to is known."""
T = TypeVar("T")
Work = Callable[[Deadline], Awaitable[T]]


class Abandoned(Exception):
    """The work was given up while somebody still waited: the process is stopping."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: "asyncio.Task[T]"
    deadline: Deadline
    waiters: int = 0


class SingleFlight(Generic[T]):
    """One running task a key. It goes on while anyone waits for it, and is cancelled when the last one leaves."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, work: Work[T], *, deadline: float) -> tuple[T, bool]:
        """The result of ``work`` for ``key``, shared by all who ask while it runs, and whether this caller led.

        ``work`` is told until when its result is of use to anyone; that moves as others join. Failures are shared
        too. Raises :class:`TimeoutError` just after the caller's own ``deadline`` (event loop clock),
        :class:`Abandoned` when :meth:`drain` gave the work up.
        """
        flight = self._flights.get(key)
        led = flight is None
        if flight is None:
            due = Deadline(deadline)
            flight = _Flight(asyncio.ensure_future(_start(work, due)), due)
            self._flights[key] = flight
            flight.task.add_done_callback(lambda done: self._forget(key, done))
        flight.deadline.extend(deadline)
        flight.waiters += 1
        try:
            async with asyncio.timeout_at(deadline + GRACE_S):
                return await asyncio.shield(flight.task), led
        except asyncio.CancelledError:
            if flight.task.cancelled() and not _being_cancelled():
                raise Abandoned from None
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._drop(key, flight)
                flight.task.cancel()

    def _drop(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _forget(self, key: str, done: "asyncio.Task[T]") -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.task is done:
            del self._flights[key]
        if not done.cancelled():
            done.exception()  # looked at, so that an abandoned failure is not reported as never retrieved

    async def drain(self, within_s: float) -> None:
        """Wait for what is under way, for what is being paid for is still to be stored; then give it up."""
        tasks = [flight.task for flight in self._flights.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _being_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


async def _start(work: Work[T], deadline: Deadline) -> T:
    return await work(deadline)
