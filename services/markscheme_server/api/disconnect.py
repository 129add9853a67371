"""Stop working for a caller who has disconnected.

Its judge calls are cancelled, unless another caller waits for the same ones.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The caller disconnected before there was an answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the caller disconnects.

    Raises:
        ClientGone: The caller disconnected.
    """
    connected = asyncio.timeout(None)
    leaving = asyncio.ensure_future(_end_when_gone(request, connected))
    try:
        async with connected:
            return await work
    except TimeoutError:
        if connected.expired():
            raise ClientGone from None
        raise
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _end_when_gone(request: Request, connected: asyncio.Timeout) -> None:
    """End the block when the connection is closed: after the body no other message can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connected.reschedule(0)
