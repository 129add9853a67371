"""How long a client may take, and whose connection gives way: on a clock that the test turns."""

import asyncio
import json
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from markscheme_server.api.connections import (
    BODY_S,
    HEAD_S,
    MIN_BYTES_PER_S,
    Connection,
    WaitingConnections,
)

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.paused = b"", False, False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Clock:
    """The loop's time; everything else of it is the running loop's."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)


class Door:
    """Connections to an application that reads a body and answers 200."""

    def __init__(self, most: int = 100, *, reads: bool = True) -> None:
        self.clock, self.waiting, self.state = Clock(), WaitingConnections(most), ServerState()

        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            while not reads:
                await asyncio.Event().wait()
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self.config = uvicorn.Config(cast(Any, app), lifespan="off", log_config=None)
        self.make = partial(
            Connection, self.config, self.state, {}, cast(Any, self.clock), waiting=self.waiting
        )

    async def open(self, sent: bytes = b"") -> tuple[Connection, Transport]:
        connection, transport = self.make(), Transport()
        connection.connection_made(transport)
        await self.send(connection, sent)
        return connection, transport

    async def send(self, connection: Connection, data: bytes) -> None:
        if data:
            connection.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.waiting.expire(self.clock.now)


async def test_a_head_has_its_time_and_no_more_though_bytes_keep_coming() -> None:
    door = Door()
    connection, transport = await door.open(b"GET / HTTP/1.1\r\n")
    for _ in range(9):
        door.later(1)
        await door.send(connection, b"A: b\r\n")
    assert not transport.closed
    door.later(HEAD_S - 9)
    assert transport.closed
    assert (
        json.loads(transport.written.partition(b"\r\n\r\n")[2])["error"]["code"]
        == "request_timeout"
    )


async def test_a_body_that_trickles_has_its_time_and_no_more() -> None:
    door = Door()
    connection, transport = await door.open(HEAD)
    for _ in range(int(BODY_S) + 1):
        door.later(1)
        await door.send(connection, b"x")
    door.later(1)
    assert transport.closed
    assert transport.written.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_is_slow_but_arrives_is_waited_for() -> None:
    door = Door()
    connection, transport = await door.open(HEAD)
    for _ in range(600):
        door.later(1)
        await door.send(connection, b"x" * MIN_BYTES_PER_S)
    assert not transport.closed


async def test_a_body_that_we_do_not_read_is_not_held_against_its_sender() -> None:
    door = Door(reads=False)
    _, transport = await door.open(HEAD + b"x" * 1_000_000)
    assert transport.paused
    door.later(10 * BODY_S)
    assert not transport.closed


async def test_who_waits_for_an_answer_is_never_cut_off() -> None:
    door = Door(reads=False)
    _, transport = await door.open(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    door.later(10 * BODY_S)
    assert not transport.closed


async def test_a_second_head_on_a_connection_has_its_own_time() -> None:
    door = Door()
    connection, transport = await door.open(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    door.later(HEAD_S - 1)
    await door.send(connection, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    door.later(HEAD_S - 1)
    assert not transport.closed
    door.later(1)
    assert transport.closed


@pytest.mark.parametrize(("first", "second"), [(b"", HEAD), (HEAD, b"GET /")])
async def test_the_client_that_used_up_most_of_its_time_gives_way(
    first: bytes, second: bytes
) -> None:
    door = Door(most=2)
    _, longest = await door.open(first)
    door.later(5)
    _, other = await door.open(second)
    await door.open()
    assert longest.closed
    assert not other.closed


async def test_where_nobody_gives_way_the_answer_is_to_come_again() -> None:
    door = Door(most=1, reads=False)
    _, busy = await door.open(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    _, refused = await door.open(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not busy.closed
    assert refused.written.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused.written
    assert json.loads(refused.written.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
