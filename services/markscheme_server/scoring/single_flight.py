"""Single flight within one process: callers that ask for the same work share one run of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from markscheme_server.domain.call_context import Deadline

GRACE_S = 0.1
"""Seconds that callers wait beyond the work's own deadline for its outcome."""
T = TypeVar("T")
Work = Callable[[Deadline], Awaitable[T]]


class Abandoned(Exception):
    """The work was cancelled while callers waited, because the process is stopping."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: "asyncio.Task[T]"
    deadline: Deadline
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Runs one task per key; it is cancelled when the last caller that waits for it leaves."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()
        """Tasks of all flights, and of dropped ones that have not ended yet."""

    async def run(self, key: str, work: Work[T], *, deadline: float) -> tuple[T, bool]:
        """Return the result of `work` for `key`, and whether this caller started it.

        All callers that ask while the work runs share its result or its exception. `work` gets the
        latest deadline of all callers, which moves as others join. Raises `TimeoutError` just
        after the caller's own `deadline` (on the event loop's clock), and `Abandoned` when `drain`
        cancelled the work.
        """
        flight = self._flights.get(key)
        led = flight is None
        if flight is None:
            due = Deadline(deadline)
            flight = _Flight(asyncio.ensure_future(_start(work, due)), due)
            self._flights[key] = flight
            self._tasks.add(flight.task)
            flight.task.add_done_callback(lambda done: self._forget(key, done))
        flight.deadline.extend(deadline)
        flight.waiters += 1
        try:
            # Shielded: a caller that leaves must not cancel the work that others wait for.
            async with asyncio.timeout_at(deadline + GRACE_S):
                return await asyncio.shield(flight.task), led
        except asyncio.CancelledError:
            # Either the work was cancelled or this caller was; only the first is `Abandoned`.
            if flight.task.cancelled() and not _being_cancelled():
                raise Abandoned from None
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                # Deleted first: the next caller must start anew, not join a cancelled task.
                del self._flights[key]
                flight.task.cancel()

    def _forget(self, key: str, done: "asyncio.Task[T]") -> None:
        self._tasks.discard(done)
        flight = self._flights.get(key)
        if flight is not None and flight.task is done:
            del self._flights[key]
        if not done.cancelled():
            done.exception()  # mark it as retrieved, so that asyncio does not log it

    async def drain(self, within_s: float) -> None:
        """Wait up to `within_s` seconds for running work, then cancel the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _being_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


async def _start(work: Work[T], deadline: Deadline) -> T:
    return await work(deadline)
