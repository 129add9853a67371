"""Batch many small requests into few transactions.

A lone item is handled at once; items that arrive while a batch runs form the next one, so that
batches grow under load. Where a transaction is expensive, a batch may also wait a moment for more
items, provided the last one had several.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import tenacity
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from markscheme_server.store.engine.database import Database, DatabaseUnreachable, ValueRefused

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ITEMS = 512
"""Items per batch: bounds a transaction's length, and what is repeated after a failure."""
MAX_WEIGHT = 2048
"""Total weight per batch: bounds the time for which it blocks the event loop."""
RETRY_S = 10.0
"""Seconds to retry while a database restarts: results that were paid for are worth the wait."""


class Batcher(Generic[Item, Result]):
    """Handles the items of many callers in batches, and returns to each its result.

    `Database.drain` waits for them.

    ``handle`` must be idempotent: a batch is repeated when the connection was lost at its commit.
    ``gather_s``: seconds that a batch waits for more items. ``weigh``: the weight of an item.
    """

    def __init__(
        self,
        database: Database,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        gather_s: float = 0.0,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._database, self._handle = database, handle
        self._gather_s, self._weigh = gather_s, weigh
        self._last_size = 0
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Handle ``item``, also when the caller is cancelled: a paid verdict must be stored."""
        return await self.put(item)

    def put(self, item: Item) -> "asyncio.Future[Result]":
        """Have ``item`` handled; return a future of its result, which may be cancelled."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
            self._database.tasks.add(self._runner)
            self._runner.add_done_callback(self._database.tasks.discard)
        return future

    async def _run(self) -> None:
        while self._waiting:
            if self._gather_s and self._last_size > 1:
                await asyncio.sleep(self._gather_s)
            count = self._batch_size()
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._last_size = len(batch)
            await self._process(batch)

    def _batch_size(self) -> int:
        """Return how many waiting items fit into one batch; at least one."""
        weight = 0
        for count, (item, _) in enumerate(self._waiting[:MAX_ITEMS]):
            weight += self._weigh(item)
            if count and weight > MAX_WEIGHT:
                return count
        return min(len(self._waiting), MAX_ITEMS)

    async def _process(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._handle_or_retry([item for item, _ in batch])
        except (DBAPIError, ValueRefused) as error:
            if len(batch) == 1 or not _is_data_error(error):
                for _, future in batch:
                    _fail(future, error)
                return
            for one in batch:  # one bad item must not fail its neighbours
                await self._process([one])
        except Exception as error:
            for _, future in batch:
                _fail(future, error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _handle_or_retry(self, items: Sequence[Item]) -> Sequence[Result]:
        try:
            return await self._handle(items)
        except (OSError, DBAPIError, DatabaseUnreachable) as error:
            if not _connection_lost(error):
                raise
        return await self._retry(items)

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: _connection_lost(error)),
        reraise=True,
        stop=tenacity.stop_after_delay(RETRY_S),
        wait=tenacity.wait_exponential(0.1, max=1.0),
    )
    async def _retry(self, items: Sequence[Item]) -> Sequence[Result]:
        return await self._handle(items)


def _is_data_error(error: DBAPIError | ValueRefused) -> bool:
    """Return whether the database refused the data, perhaps of one item only.

    SQL states of class 22 are about data; SQLAlchemy does not map all of them to ``DataError``.
    """
    if isinstance(error, ValueRefused | IntegrityError | DataError):
        return True
    return (getattr(error.orig, "sqlstate", None) or "").startswith("22")


def _connection_lost(error: BaseException) -> bool:
    return isinstance(error, (OSError, DatabaseUnreachable)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _fail(future: "asyncio.Future[Result]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # mark it as retrieved, in case the caller was cancelled
