"""HTTP connections: how long a client may take to send a request, and how many connections there may be.

uvicorn limits neither. A request's head must arrive within :data:`HEAD_S`, its body within :data:`BODY_S` and the
time that the bytes received so far take at :data:`LEAST_BYTES_PER_S`. When a process has as many connections as its
file descriptors allow, the one whose client has used up most of its time is closed for each new one; where no
connection waits for its client, new requests are answered 503.
"""

import asyncio
import resource
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from markscheme.schema import ErrorBody, ErrorDetail

HEAD_S = 10.0
"""For the head of a request, from the opening of the connection or the end of the previous answer."""
BODY_S = 60.0
"""For the body of a request, beside the time for what has arrived."""
LEAST_BYTES_PER_S = 16 * 1024
"""The rate at which a body may arrive for as long as it takes."""
OWN_DESCRIPTORS = 64
"""Descriptors of a process that are neither connections of clients nor calls to judges: database, Redis, files."""
MOST_CONNECTIONS = 8192
"""Connections of a process, however many descriptors it may have."""
RETRY_AFTER_S = 1
LINGER_S = 1.0
"""How long what a refused client still sends is read and thrown away, so that it gets the answer."""


def most_connections(judge_calls: int) -> int:
    """How many connections this process takes, with up to ``judge_calls`` calls to judges in flight."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(descriptors // 2, descriptors - OWN_DESCRIPTORS - judge_calls))


class Waiting:
    """The connections of one process that wait for their client, in two queues: the longest wait is first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.heads: OrderedDict[Connection, float] = OrderedDict()
        self.bodies: OrderedDict[Connection, float] = OrderedDict()

    def longest(self, now: float) -> "Connection | None":
        """The connection whose client has used up the largest part of its time."""
        first = [
            (now - since, allowed, connection)
            for queue, allowed in ((self.heads, HEAD_S), (self.bodies, BODY_S))
            for connection, since in list(queue.items())[:1]
        ]
        return max(first, key=lambda each: each[0] / each[1])[2] if first else None

    def expire(self, now: float) -> None:
        """Close every connection whose client has taken too long."""
        for queue, allowed in ((self.heads, HEAD_S), (self.bodies, BODY_S)):
            due = []
            for connection, since in queue.items():
                if now - since < allowed:
                    break
                due.append(connection)
            for connection in due:
                connection.expire(now)


class Connection(H11Protocol):
    """uvicorn's connection with a limit on the client's time. ``waiting``: shared by those of one process."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting: Waiting,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.waiting = waiting
        self._queue: OrderedDict[Connection, float] | None = None
        self._since = 0.0
        self._received = 0
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.waiting.most:
            longest = self.waiting.longest(self.loop.time())
            if longest is not None:
                longest.drop()
            else:
                self.app = _overloaded
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._queue is self.waiting.bodies:
            self._received += len(data)
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def drop(self) -> None:
        """Close the connection now, without an answer."""
        self._leave()
        self.transport.abort()

    def expire(self, now: float) -> None:
        """Close the connection, unless its time is not up: the body has been arriving, or was not read by us."""
        if self._queue is self.waiting.bodies:
            earned = self._received / LEAST_BYTES_PER_S
            self._since = now if self.flow.read_paused else min(now, self._since + earned)
            self._received = 0
            if now - self._since < BODY_S:
                self._queue[self] = self._since
                self._queue.move_to_end(self)  # looked at again after those that began later
                return
        begun = self._queue is self.waiting.bodies or bool(self.conn.trailing_data[0])
        self._leave()
        if begun:
            self._refuse(408, "request_timeout", "the request did not arrive in time")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_request", "this is not a valid HTTP/1.1 request")

    def _should_upgrade(self) -> bool:
        """There is nothing to upgrade to; the request is answered as if it had not asked."""
        return False

    def _wait(self) -> None:
        """Note since when the connection waits for its client, and for which part of a request."""
        state = self.conn.their_state
        queue = (
            None
            if self._refused or self.transport.is_closing()
            else self.waiting.heads
            if state is h11.IDLE
            else self.waiting.bodies
            if state is h11.SEND_BODY
            else None
        )
        if queue is not self._queue:
            self._leave()
            if queue is not None:
                self._queue, self._since, self._received = queue, self.loop.time(), 0
                queue[self] = self._since

    def _leave(self) -> None:
        if self._queue is not None:
            self._queue.pop(self, None)
            self._queue = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in the service's error shape where an answer can still begin, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id = f"req_{secrets.token_hex(12)}"
            content, headers = _error(status, code, message, request_id)
            for event in (
                h11.Response(status_code=status, headers=list(headers.items())),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        # Closed at once, with bytes of the client unread, the connection would be reset and the answer lost.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


async def _overloaded(scope: Scope, _receive: Receive, send: Send) -> None:
    content, headers = _error(
        503,
        "overloaded",
        "the service has as many connections as it can take; send it again",
        f"req_{secrets.token_hex(12)}",
    )
    await send(
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": content})


def _error(
    status: int, code: str, message: str, request_id: str
) -> tuple[bytes, Mapping[str, str]]:
    kind = "unavailable_error" if status == 503 else "invalid_request_error"
    content = (
        ErrorBody(error=ErrorDetail(message=message, type=kind, code=code), request_id=request_id)
        .model_dump_json()
        .encode()
    )
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        "x-request-id": request_id,
    }
    return content, headers | ({"retry-after": str(RETRY_AFTER_S)} if status == 503 else {})
