"""Work that ends when its caller leaves, and when it runs out of time by itself."""

import asyncio
from typing import Any

import pytest

from markscheme_server.api.disconnect import ClientGone, while_connected


class Request:
    """Receives these messages, and then nothing more."""

    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.sleep(60)
        return {"type": self.messages.pop(0)}


async def test_work_is_cancelled_when_the_caller_leaves() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    request: Any = Request("http.request", "http.disconnect")
    with pytest.raises(ClientGone):
        await while_connected(request, work())
    assert ended == ["cancelled"]


async def test_work_that_runs_out_of_time_is_not_taken_for_a_caller_who_left() -> None:
    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    request: Any = Request()
    with pytest.raises(TimeoutError):
        await while_connected(request, work())
