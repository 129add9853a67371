"""Pages of rubrics that fetch the following ones as they are read, as OpenAI's SDK has them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

from pydantic import PrivateAttr

from markscheme.schema import Rubric, RubricList


class RubricPage(RubricList):
    """One page of rubrics. To iterate over it is to iterate over all that follow as well."""

    _fetch_after: Callable[[str], "RubricPage"] = PrivateAttr()

    def next_page(self) -> "RubricPage | None":
        """Fetch the next page; `None` after the last."""
        last = _last_id(self)
        return None if last is None else self._fetch_after(last)

    def __iter__(self) -> Iterator[Rubric]:  # type: ignore[override]  # pydantic's yields fields
        page: RubricPage | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()


class AsyncRubricPage(RubricList):
    """`RubricPage` for asyncio: `async for rubric in page`."""

    _fetch_after: Callable[[str], Awaitable["AsyncRubricPage"]] = PrivateAttr()

    async def next_page(self) -> "AsyncRubricPage | None":
        """Fetch the next page; `None` after the last."""
        last = _last_id(self)
        return None if last is None else await self._fetch_after(last)

    async def __aiter__(self) -> AsyncIterator[Rubric]:
        page: AsyncRubricPage | None = self
        while page is not None:
            for rubric in page.data:
                yield rubric
            page = await page.next_page()


class AsyncRubricPages(Coroutine[Any, Any, AsyncRubricPage]):
    """What `AsyncClient.rubrics` returns: await it for one page, or `async for` all rubrics."""

    def __init__(self, fetch: Callable[[], Coroutine[Any, Any, AsyncRubricPage]]) -> None:
        self._fetch = fetch
        self._running: Coroutine[Any, Any, AsyncRubricPage] | None = None

    async def __aiter__(self) -> AsyncIterator[Rubric]:
        async for rubric in await self._fetch():
            yield rubric

    def __await__(self) -> Generator[Any, Any, AsyncRubricPage]:
        return self._fetch().__await__()

    # `asyncio.run` and `asyncio.create_task` take coroutines only, and drive them by these.
    def send(self, value: Any) -> Any:
        """Go on with the call."""
        if self._running is None:
            self._running = self._fetch()
        return self._running.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error in the call."""
        if self._running is None:
            self._running = self._fetch()
        return self._running.throw(*error)

    def close(self) -> None:
        """End the call."""
        if self._running is not None:
            self._running.close()


def _last_id(page: RubricList) -> str | None:
    """Return the id after which the next page begins, if there is one."""
    return page.data[-1].id if page.has_more and page.data else None
