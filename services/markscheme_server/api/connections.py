"""Limit how long a client may take to send a request, its head's size, and the connections.

uvicorn limits none of them. A request's head must arrive within `HEAD_S`, its body within `BODY_S`
plus the time that the bytes received so far take at `MIN_BYTES_PER_S`. When a process has as many
connections as its file descriptors allow, each new one closes the connection whose client has used
the largest part of its time; when no connection waits for its client, new requests get 503.
"""

import asyncio
import resource
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from markscheme.schema import ErrorBody, ErrorDetail

HEAD_S = 10.0
"""Seconds for the head of a request, from when the connection opens or the last answer ends."""
BODY_S = 60.0
"""Seconds for the body of a request, besides the time for what has arrived."""
MIN_BYTES_PER_S = 16 * 1024
"""A body that arrives at this rate may take any time."""
MAX_HEAD_BYTES = 64 * 1024
"""Longest head that may be incomplete; also of what stands between the bytes of a chunked body."""
OWN_DESCRIPTORS = 64
"""File descriptors for database, Redis and files: neither clients nor calls to judges."""
MAX_CONNECTIONS = 8192
"""Upper bound on the connections of a process, whatever its descriptors."""
RETRY_AFTER_S = 1
LINGER_S = 1.0
"""Seconds in which input of a refused client is discarded, so that it gets the answer."""


def max_connections(judge_calls: int) -> int:
    """Return how many connections this process takes beside `judge_calls` calls to judges."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(descriptors // 2, descriptors - OWN_DESCRIPTORS - judge_calls))


class WaitingConnections:
    """The connections of one process that wait for their client, the longest wait first.

    One queue is for request heads, one for bodies.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.heads: OrderedDict[Connection, float] = OrderedDict()
        self.bodies: OrderedDict[Connection, float] = OrderedDict()

    def longest(self, now: float) -> "Connection | None":
        """Return the connection whose client has used the largest part of its time."""
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


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits on the client's time and its heads.

    `waiting` is shared by all connections of the process. A request that comes before the answer
    to the one before it is not served: the connection closes after that answer. A parser that is
    given many at once cannot be stopped, and each would take memory.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting: WaitingConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.waiting = waiting
        self._queue: OrderedDict[Connection, float] | None = None
        self._since = 0.0
        self._received = 0
        self._part: Literal["nothing", "head", "body"] = "nothing"
        """What of a request has begun to arrive and is not complete."""
        self._framing = 0
        """Bytes received since the last that were part of a body, or ended a head or a body."""
        self._ignores_input = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; above the limit, drop the slowest one or answer 503."""
        super().connection_made(transport)
        if len(self.connections) > self.waiting.limit:
            longest = self.waiting.longest(self.loop.time())
            if longest is not None:
                longest.drop()
            else:
                # All the others are being served: refuse what comes over this one only.
                self.app = _overloaded
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and note what the connection waits for now."""
        if self._ignores_input:
            return
        self._unset_keepalive_if_required()
        if self._queue is self.waiting.bodies:
            self._received += len(data)
        self._framing += len(data)
        try:
            self._parse(data)
            if self._framing > MAX_HEAD_BYTES:
                raise httptools.HttpParserError("the head is too long")
        except httptools.HttpParserError:
            if self._is_answering and self._part != "body":
                # It came before the answer, which is not lost for it.
                self._ignores_input, self.cycle.keep_alive = True, False
            else:
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(400, "bad_request", "this is not a valid HTTP/1.1 request")
        self._wait()

    def on_message_begin(self) -> None:
        """Begin to read a head."""
        if self._is_answering:
            raise httptools.HttpParserError("the request before it has no answer yet")
        super().on_message_begin()
        self._part = "head"

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; leave out those that follow a chunked body, which nobody has checked."""
        if self._part == "head":
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Begin to serve the request, if its head is valid."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise httptools.HttpParserError("it takes one Host")
        if any(
            name == b"transfer-encoding" and value.lower() != b"chunked"
            for name, value in self.headers
        ):
            raise httptools.HttpParserError("it is chunked, or not encoded")
        if self.parser.get_method() == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        super().on_headers_complete()
        self._part, self._framing = "body", 0

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        super().on_body(body)
        self._framing = 0

    def on_message_complete(self) -> None:
        """Note that all of the request has arrived."""
        super().on_message_complete()
        self._part, self._framing = "nothing", 0

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._wait()

    def drop(self) -> None:
        """Close the connection now, without an answer."""
        self._leave()
        self.transport.abort()

    def expire(self, now: float) -> None:
        """Close the connection, unless its body keeps arriving, or we have not read it."""
        if self._queue is self.waiting.bodies:
            granted = self._received / MIN_BYTES_PER_S
            # While we read nothing the client cannot send, so that its time begins anew.
            self._since = now if self.flow.read_paused else min(now, self._since + granted)
            self._received = 0
            if now - self._since < BODY_S:
                self._queue[self] = self._since
                self._queue.move_to_end(self)  # check it again after those that began later
                return
        self._leave()
        if self._part == "nothing":
            self.transport.close()
        else:
            self._refuse(408, "request_timeout", "the request did not arrive in time")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # There is no other protocol, so that the header is ignored. But the parser stopped at
            # the head's end, and would take a body for the next request.
            version = self.parser.get_http_version().encode()
            head = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
            head += b"".join(
                b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"
            )
            self.parser = httptools.HttpRequestParser(self)
            self._parse(head + b"\r\n" + data[upgrade.args[0] :])

    def _should_upgrade(self) -> bool:
        """Have a head with an Upgrade header left alone: `_parse` reads it again without."""
        return True

    def _wait(self) -> None:
        """Note for which part of a request the connection waits, and since when."""
        queue = (
            None
            if self._ignores_input or self.transport.is_closing()
            else self.waiting.bodies
            if self._part == "body"
            else None
            if self._is_answering
            else self.waiting.heads
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
        """Answer in the service's error shape, if no answer has begun, and close."""
        if self._is_answering:
            # uvicorn then drops what the application still sends.
            self.cycle.disconnected = True
            begun = self.cycle.response_started
        else:
            begun = self._part == "body"  # it was answered before all of it had arrived
        if not begun:
            content, headers = _error(status, code, message, f"req_{secrets.token_hex(12)}")
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[status] + lines.encode() + b"\r\n" + content)
        # Closing at once, with input unread, would reset the connection and lose the answer.
        self._ignores_input = True
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
