"""How long a client may take, and whose connection gives way: on a clock that the test turns."""

import asyncio
import json
import resource
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from markscheme_server.api.connections import (
    BODY_S,
    HEAD_S,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MIN_BYTES_PER_S,
    OWN_DESCRIPTORS,
    Connection,
    WaitingConnections,
    max_connections,
)

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


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
    """Connections to an application that reads a body and answers 200.

    `reads`: whether it reads, and answers, at once; otherwise when `reading` is set.
    """

    def __init__(self, most: int = 100, *, reads: bool = True) -> None:
        self.clock, self.waiting, self.state = Clock(), WaitingConnections(most), ServerState()
        self.reading = asyncio.Event()
        self.seen: list[tuple[Scope, bytes]] = []
        """Each request and its body."""
        if reads:
            self.reading.set()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self.reading.wait()
            body = b""
            while scope["path"] != "/unread":
                part = await receive()
                body += part.get("body", b"")
                if not part.get("more_body"):
                    break
            self.seen.append((scope, body))
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
    _, transport = await door.open(GET)
    door.later(10 * BODY_S)
    assert not transport.closed


async def test_a_second_head_on_a_connection_has_its_own_time() -> None:
    door = Door()
    connection, transport = await door.open(GET)
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    door.later(HEAD_S - 1)
    await door.send(connection, GET)
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
    _, busy = await door.open(GET)
    _, refused = await door.open(GET)
    assert not busy.closed
    assert refused.written.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused.written
    assert json.loads(refused.written.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"


def refusal(transport: Transport) -> tuple[bytes, str]:
    """Return the status line, and the code of the error."""
    head, _, content = transport.written.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], json.loads(content)["error"]["code"]


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: " + b"a" * 1000 + b"\r\n"),
        (CHUNKED + b"1;a=", b"a" * 1000),
        (CHUNKED + b"0\r\n", b"A: " + b"a" * 1000 + b"\r\n"),
        (CHUNKED + b"0\r\nA: ", b"a" * 1000),
    ],
    ids=["a path", "a header", "headers", "a chunk's extension", "trailers", "a trailer"],
)
async def test_what_frames_a_body_takes_no_more_than_its_room(begin: bytes, more: bytes) -> None:
    door = Door()
    connection, transport = await door.open(begin)
    for _ in range(MAX_HEAD_BYTES // 1000):
        await door.send(connection, more[:1000])
    if begin.startswith(b"POST"):
        assert transport.written == b""
    await door.send(connection, more)
    await door.send(connection, more)
    assert transport.closed
    assert refusal(transport) == (b"HTTP/1.1 400 Bad Request", "bad_request")


async def test_a_large_body_in_small_chunks_has_room() -> None:
    door = Door()
    connection, transport = await door.open(CHUNKED)
    for _ in range(MAX_HEAD_BYTES // 2):
        for part in (b"1\r\n", b"a\r\n"):
            connection.data_received(part)
    await door.send(connection, b"0\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    assert door.seen[0][1] == b"a" * (MAX_HEAD_BYTES // 2)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/7.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"identity"),
        CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ],
)
async def test_what_is_no_request_is_refused_and_reaches_no_application(sent: bytes) -> None:
    door = Door()
    _, transport = await door.open(sent)
    assert refusal(transport) == (b"HTTP/1.1 400 Bad Request", "bad_request")
    assert transport.closed
    assert door.seen == []


async def test_headers_are_trimmed_and_none_is_added_after_the_body() -> None:
    door = Door()
    await door.open(
        CHUNKED.replace(b"\r\n\r\n", b"\r\nA:  b \t\r\n\r\n")
        + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    )
    [(scope, body)] = door.seen
    assert scope["headers"] == [(b"host", b"x"), (b"transfer-encoding", b"chunked"), (b"a", b"b")]
    assert body == b"a"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_beside_an_upgrade_header_is_read(version: bytes) -> None:
    door = Door()
    connection, transport = await door.open(
        b"POST /a?b HTTP/" + version + b"\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 4\r\n\r\nab"
    )
    await door.send(connection, b"cd")
    [(scope, body)] = door.seen
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/a", b"b")
    assert body == b"abcd"
    assert transport.written.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("more", [GET * 1000, b"GET", b"\x00"])
async def test_what_comes_before_the_answer_is_not_served_and_the_answer_is(more: bytes) -> None:
    door = Door(reads=False)
    connection, transport = await door.open(GET + more)
    await door.send(connection, more)
    door.later(10 * BODY_S)
    assert not transport.closed
    door.reading.set()
    await door.send(connection, b"")
    assert transport.written.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in transport.written
    assert transport.closed
    assert len(door.seen) == 1


async def test_a_body_that_breaks_off_in_its_form_after_the_answer_gets_no_other() -> None:
    door = Door()
    connection, transport = await door.open(CHUNKED.replace(b"POST /", b"POST /unread"))
    answer = transport.written
    assert answer.startswith(b"HTTP/1.1 200 ")
    await door.send(connection, b"zz\r\n")
    assert transport.closed
    assert transport.written == answer


async def test_after_an_early_answer_the_rest_of_a_body_is_no_request() -> None:
    door = Door()
    body = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection, transport = await door.open(head)
    await door.send(connection, body)
    assert len(door.seen) == 1
    await door.send(connection, GET)
    assert [scope["path"] for scope, _ in door.seen] == ["/unread", "/"]
    assert transport.written.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    ("descriptors", "judge_calls", "connections"),
    [
        (1024, 100, 1024 - OWN_DESCRIPTORS - 100),
        (1024, 900, 512),
        (10**6, 32, MAX_CONNECTIONS),
        (resource.RLIM_INFINITY, 32, MAX_CONNECTIONS),
    ],
)
def test_connections_leave_descriptors_for_the_judges(
    descriptors: int, judge_calls: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (descriptors, descriptors))
    assert max_connections(judge_calls) == connections
