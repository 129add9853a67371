"""Print the computing for HTTP in one small scoring request: `python -m runs.http_parts`.

CPU milliseconds of this process, alone and with warm caches, in turns: to read a request of 1.2 kB
and write an answer of 0.9 kB on `Connection`, without a socket; to post a question of 3 kB to a
server in this process on loopback and read its answer, which is part of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from markscheme_server.api.connections import Connection, WaitingConnections
from markscheme_server.judge.endpoint import make_endpoints
from markscheme_server.judge_settings import JudgeSettings

REQUESTS, TURNS = 1000, 3
REQUEST = (
    b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1:8321\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: python-httpx/0.28.1\r\nAuthorization: Bearer mk_benchmark\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: 1200\r\n\r\n" + b"x" * 1200
)
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "y" * 3000}]}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n" + b"x" * 400


class Nowhere(asyncio.Transport):
    """A connection that keeps nothing."""

    def write(self, _data: Any) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        """Return that it is open."""
        return False

    def pause_reading(self) -> None:
        """Do nothing."""

    resume_reading = pause_reading


class Server(asyncio.Protocol):
    """Answers each question alike."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with no question."""
        self._transport, self._received = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        """Answer a question that is complete."""
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if len(body) == int(length or -1):
            self._received = b""
            self._transport.write(ANSWER)


async def application(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once."""
    await receive()
    headers = [(b"content-length", b"900"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * 900})


async def measure() -> None:
    """Print both figures, in turns."""
    config = uvicorn.Config(cast(Any, application), lifespan="off", log_config=None)
    connection = Connection(config, ServerState(), {}, waiting=WaitingConnections(10))
    connection.connection_made(Nowhere())
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = JudgeSettings(base_url=f"http://127.0.0.1:{port}/v1", model="m")
    (endpoint,) = make_endpoints("default", settings, None)

    async def read_a_request() -> None:
        connection.data_received(REQUEST)
        await asyncio.gather(*connection.tasks)

    async def ask_a_judge() -> None:
        await endpoint.post(BODY)

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "read a request, write an answer": read_a_request,
        "post a question, read its answer": ask_a_judge,
    }
    for name, way in [*ways.items()] * TURNS:
        await way()
        before = time.process_time()
        for _ in range(REQUESTS):
            await way()
        print(f"{name:32} {1000 * (time.process_time() - before) / REQUESTS:.3f} ms", flush=True)
    await endpoint.transport.aclose()
    server.close()


if __name__ == "__main__":
    uvloop.run(measure())
