"""Await several coroutines at once."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results in order, as `asyncio.gather`; a lone coroutine needs no task of its own.

    Most scoring requests have one group, one rollout and one call, and would start a task at each
    of six levels.
    """
    waiting = list(coroutines)
    if len(waiting) == 1:
        return [await waiting[0]]
    return await asyncio.gather(*waiting)
