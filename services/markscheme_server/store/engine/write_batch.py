"""Many small questions, few transactions: what is asked while a batch is on its way goes with the next one.

A lone item is sent at once. Under load the batches grow by themselves; where a batch is dear (a transaction that must
reach the disk) it may also wait a moment for company, as long as there was company the last time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import tenacity
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from markscheme_server.store.engine.database import DatabaseUnreachable

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_ITEMS = 512
"""Items in one batch: bounds a transaction's length and what a failure makes us repeat."""
MOST_WEIGHT = 2048
"""What the items of one batch weigh together: bounds how long handling it keeps the event loop."""
PATIENCE_S = 10.0
"""How long a batch waits for a database that restarts. What was paid for is worth the wait."""


class Batcher(Generic[Item, Result]):
    """Answers items one by one to its callers and handles them many at a time."""

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        gather_s: float = 0.0,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._handle, self._gather_s, self._weigh = handle, gather_s, weigh
        self._last_size = 0
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Have ``item`` handled. It is, even when the caller is cancelled: a paid verdict is to be kept."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
        return await asyncio.shield(future)

    async def drain(self) -> None:
        """Wait until nothing is waiting."""
        if self._runner is not None:
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            if self._gather_s and self._last_size > 1:
                await asyncio.sleep(self._gather_s)
            count = self._fitting()
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._last_size = len(batch)
            await self._settle(batch)

    def _fitting(self) -> int:
        """How many of those that wait go into one batch; one at least."""
        weight = 0
        for count, (item, _) in enumerate(self._waiting[:MOST_ITEMS]):
            weight += self._weigh(item)
            if count and weight > MOST_WEIGHT:
                return count
        return min(len(self._waiting), MOST_ITEMS)

    async def _settle(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._handled([item for item, _ in batch])
        except DBAPIError as error:
            if len(batch) == 1 or not _items_fault(error):
                for _, future in batch:
                    _fail(future, error)
                return
            for one in batch:  # one bad item does not take its neighbours with it
                await self._settle([one])
        except Exception as error:
            for _, future in batch:
                _fail(future, error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _handled(self, items: Sequence[Item]) -> Sequence[Result]:
        """The items' results. A batch whose commit was lost with the connection is handled again as a whole, so
        handlers must be harmless to repeat."""
        try:
            return await self._handle(items)
        except (OSError, DBAPIError, DatabaseUnreachable) as error:
            if not _connection_lost(error):
                raise
        return await self._handled_patiently(items)

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: _connection_lost(error)),
        reraise=True,
        stop=tenacity.stop_after_delay(PATIENCE_S),
        wait=tenacity.wait_exponential(0.1, max=1.0),
    )
    async def _handled_patiently(self, items: Sequence[Item]) -> Sequence[Result]:
        return await self._handle(items)


def _items_fault(error: DBAPIError) -> bool:
    """Whether the database minds what it was given: of a batch, perhaps of one item only.

    22 is the class of SQL states for data; the driver's errors of it are not all SQLAlchemy's ``DataError``.
    """
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, IntegrityError | DataError) or state.startswith("22")


def _connection_lost(error: BaseException) -> bool:
    return isinstance(error, (OSError, DatabaseUnreachable)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _fail(future: "asyncio.Future[Result]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # looked at: the caller may have left
