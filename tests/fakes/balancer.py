"""A TCP load balancer that sends new connections only to processes that report ready."""

import asyncio
import itertools
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

from fakes.loops import LoopThread, stop_serving
from fakes.processes import eventually

CHECK_EVERY_S = 0.05


class Balancer:
    """In turn over the healthy ones of ``ports``; ``/readyz`` is asked every 50 ms."""

    def __init__(self, ports: list[int]) -> None:
        self._ports, self._turn = list(ports), itertools.count()
        self.healthy: list[int] = []
        self._thread = LoopThread("balancer")
        self._server = self._thread.run(self._start())
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.await_healthy(len(ports))

    def replace(self, old: int, new: int) -> None:
        """Take a process in beside the one that is to leave by itself."""
        self._ports = [port for port in self._ports if port in self.healthy or port == old] + [new]

    def await_healthy(self, count: int) -> None:
        """Wait until so many are."""
        for attempt in eventually():
            with attempt:
                assert len(self.healthy) >= count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.run(stop_serving(self._server))
        self._thread.close()

    async def _start(self) -> asyncio.Server:
        self._checking = asyncio.ensure_future(self._check())
        return await asyncio.start_server(self._forward, "127.0.0.1", 0, backlog=1024)

    async def _check(self) -> None:
        while True:
            ports = list(self._ports)
            ready = await asyncio.gather(*(_is_ready(port) for port in ports))
            self.healthy = [port for port, yes in zip(ports, ready, strict=True) if yes]
            await asyncio.sleep(CHECK_EVERY_S)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            port = self.healthy[next(self._turn) % len(self.healthy)]
            upstream, to_server = await asyncio.open_connection("127.0.0.1", port)
            with closing(to_server):
                pumps = [
                    asyncio.ensure_future(_pump(reader, to_server)),
                    asyncio.ensure_future(_pump(upstream, writer)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()


async def _is_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False
