"""A TCP proxy that injects faults between the service and PostgreSQL, Redis or a judge.

The faults and their names are toxiproxy's. They can be switched while connections are open, and
they act on those too. ``toxicity`` is the share of connections that a fault affects. As in
toxiproxy, faults act on what the server sends back; but ``Timeout`` and ``ResetPeer`` act on both
directions, and ``down`` on the listening socket itself.
"""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from fakes.loops import LoopThread, stop_serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxic:
    """One fault. ``toxicity``: the share of connections it touches."""

    toxicity: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Toxic):
    """Every piece of an answer comes later."""

    latency_s: float
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout(Toxic):
    """Pass no data while on. Close the connection after ``timeout_s``; 0: never."""

    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPeer(Toxic):
    """Connections end with RST, open ones at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicer(Toxic):
    """An answer comes in small pieces."""

    average_size: int = 16
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitData(Toxic):
    """The connection closes after so many bytes of answer."""

    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowClose(Toxic):
    """The end of a connection is passed on late."""

    delay_s: float


Kind = TypeVar("Kind", bound=Toxic)


class TcpProxy:
    """Listens on a free loopback port and forwards to ``port`` there."""

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self._upstream = port
        self._chance = random.Random(seed)
        self._toxics: tuple[Toxic, ...] = ()
        self._changed = asyncio.Event()
        self._open: set[_Connection] = set()
        self.accepted = 0
        self._thread = LoopThread("tcp-proxy")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._server: asyncio.Server | None = None
        self.up()

    def add(self, *toxics: Toxic) -> None:
        """Switch faults on, beside those that are."""
        self._thread.run(self._switch((*self._toxics, *toxics)))

    def clear(self) -> None:
        """Switch all faults off and pass on the data held by them, as TCP would resend it."""
        self._thread.run(self._switch(()))

    def down(self) -> None:
        """Refuse connections and close the open ones."""
        self._thread.run(self._close())

    def up(self) -> None:
        """Accept connections (again, on the same port)."""
        self._thread.run(self._listen())

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def close(self) -> None:
        self.down()
        self._thread.close()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, backlog=1024
            )

    async def _close(self) -> None:
        if self._server is not None:
            await stop_serving(self._server)
            self._server = None
        for connection in list(self._open):
            connection.abort()

    async def _switch(self, toxics: tuple[Toxic, ...]) -> None:
        self._toxics = toxics
        self._changed.set()
        self._changed = asyncio.Event()
        for connection in list(self._open):
            if connection.find(ResetPeer):
                connection.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(self, writer, self._chance.random())
        self._open.add(connection)
        try:
            if connection.find(ResetPeer):
                connection.reset()
            else:
                await connection.forward(reader, self._upstream)
        finally:
            connection.abort()
            self._open.discard(connection)


class _Connection:
    """One client's connection and the one made for it; ``draw`` decides which faults touch it."""

    def __init__(self, proxy: TcpProxy, client: asyncio.StreamWriter, draw: float) -> None:
        self._proxy, self._draw = proxy, draw
        self._ends = [client]
        self._answered = 0

    def find(self, kind: type[Kind]) -> Kind | None:
        """Return the fault of this kind if it is on and affects this connection."""
        return next(
            (t for t in self._proxy._toxics if isinstance(t, kind) and self._draw < t.toxicity),
            None,
        )

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def reset(self) -> None:
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.abort()

    async def forward(self, reader: asyncio.StreamReader, port: int) -> None:
        with suppress(
            OSError
        ):  # either side may go at any time: that is what the other side then sees
            upstream, to_server = await asyncio.open_connection("127.0.0.1", port)
            to_client = self._ends[0]
            self._ends.append(to_server)
            there = asyncio.ensure_future(self._pump(reader, to_server, answers=False))
            back = asyncio.ensure_future(self._pump(upstream, to_client, answers=True))
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                if slow := self.find(SlowClose):
                    await asyncio.sleep(slow.delay_s)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
                to_client.close()  # in order: what was written still arrives before the end does
                await to_client.wait_closed()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await source.read(65536):
            while hole := self.find(Timeout):
                try:
                    async with asyncio.timeout(hole.timeout_s or None):
                        await self._proxy._changed.wait()
                except TimeoutError:
                    return
            if answers:
                data = await self._spoil(data)
            await self._write(sink, data, sliced=answers)
            limit = self.find(LimitData) if answers else None
            if limit and self._answered >= limit.bytes:
                return

    async def _spoil(self, data: bytes) -> bytes:
        if late := self.find(Latency):
            await asyncio.sleep(
                max(0.0, late.latency_s + self._proxy._chance.uniform(-1, 1) * late.jitter_s)
            )
        if limit := self.find(LimitData):
            data = data[: max(0, limit.bytes - self._answered)]
        self._answered += len(data)
        return data

    async def _write(self, sink: asyncio.StreamWriter, data: bytes, *, sliced: bool) -> None:
        slicer = self.find(Slicer) if sliced else None
        size = slicer.average_size if slicer else len(data)
        for start in range(0, len(data), max(1, size)):
            sink.write(data[start : start + size])
            await sink.drain()
            if slicer:
                await asyncio.sleep(slicer.delay_s)
