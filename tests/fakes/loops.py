"""An event loop in its own thread, so that a synchronous test can drive an asynchronous fake."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from fakes.processes import PATIENCE_S

T = TypeVar("T")


class LoopThread:
    """Runs coroutines handed in from other threads until closed."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = PATIENCE_S) -> T:
        """Run the coroutine and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        """Cancel what still runs, close what is open and end the thread."""
        self.run(self._end_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    async def _end_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # One that stays open would be found by the garbage collector, and fail a later test.
        for transport in list(self.loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()
        await _turns(2)  # they close


async def stop_serving(server: asyncio.Server) -> None:
    """Close the server; what it has accepted is then an open connection."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    # asyncio fails to make a connection of a socket whose server has closed, and leaves it open.
    await _turns(4)
    server.close()


async def _turns(count: int) -> None:
    """Let the loop handle what is ready, so many times."""
    for _ in range(count):
        await asyncio.sleep(0)
