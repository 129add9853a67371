"""HTTP below the clients: connections, and the transports that each attempt of a call passes.

An attempt is given the remaining time of its call. An error that would only be paid for again is
raised at once, before the retry layer sees it; other errors go up to it.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from threading import Lock
from typing import Any, Self

import httpx
from httpx_retries import RetryTransport

from markscheme.deadline import EXTENSION
from markscheme.errors import ClientClosed
from markscheme.protocol import error_from_response

BAD_GATEWAY = 502
FINAL_CODES = frozenset({"judge_reply", "misconfigured", "quota"})
"""Codes of a 502 that another attempt would meet again."""
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=5.0)
"""httpx's own, without its limit of 100 connections: rollouts that wait for those of their group
would keep these from being sent.
"""
_HTTPX_TIMEOUT = httpx.Timeout(5.0)
"""What an httpx client has where its owner set nothing."""


def _apply_deadline(request: httpx.Request) -> None:
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None:
        deadline.stamp(request)


def _check_error_response(request: httpx.Request, response: httpx.Response) -> None:
    """Raise errors that a retry cannot mend; keep the message for the case that time runs out."""
    error = error_from_response(response)
    if response.status_code == BAD_GATEWAY and error.code in FINAL_CODES:
        raise error
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None and error.code is not None:
        deadline.last_message = error.message


class DeadlineTransport(httpx.BaseTransport):
    """Puts the call's deadline on each attempt, which `http_client` or httpx itself sends.

    Raises `StatusError` for a 502 that is the judge's and not a proxy's.
    """

    def __init__(self, http_client: httpx.Client | None = None) -> None:
        self._http_client = http_client
        self._transport = httpx.HTTPTransport(limits=_LIMITS) if http_client is None else None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one attempt."""
        _apply_deadline(request)
        if self._transport is not None:
            response = self._transport.handle_request(request)
        else:
            assert self._http_client is not None
            response = self._http_client.send(request, stream=True)
        if response.status_code >= 400:
            response.read()
            _check_error_response(request, response)
        return response

    def close(self) -> None:
        """Close all connections."""
        for sender in (self._transport, self._http_client):
            if sender is not None:
                sender.close()


class AsyncDeadlineTransport(httpx.AsyncBaseTransport):
    """`DeadlineTransport` for asyncio."""

    def __init__(self, http_client: httpx.AsyncClient | None = None) -> None:
        self._http_client = http_client
        self._transport = httpx.AsyncHTTPTransport(limits=_LIMITS) if http_client is None else None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one attempt."""
        _apply_deadline(request)
        if self._transport is not None:
            response = await self._transport.handle_async_request(request)
        else:
            assert self._http_client is not None
            response = await self._http_client.send(request, stream=True)
        if response.status_code >= 400:
            await response.aread()
            _check_error_response(request, response)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for sender in (self._transport, self._http_client):
            if sender is not None:
                await sender.aclose()


class Connections:
    """The connections of a `Client` and of its copies by `with_options`.

    They are opened at the first call, and anew in a forked process: two processes must not read
    from one socket. A deep or pickled copy has connections of its own.

    Args:
        http_client: The httpx client that sends the requests, if the user gave one.
    """

    def __init__(self, http_client: httpx.Client | None = None) -> None:
        self._http_client = http_client
        self._opened: dict[int, httpx.Client] = {}
        self._closed = False
        self._lock = Lock()

    def http(self) -> httpx.Client:
        """Return the client of this process. Raises `ClientClosed`."""
        given, process = self._http_client, os.getpid()
        with self._lock:
            _check_open(self._closed, given)
            if process not in self._opened:
                self._opened[process] = httpx.Client(
                    headers=None if given is None else given.headers,
                    transport=RetryTransport(DeadlineTransport(given)),
                )
            return self._opened[process]

    @property
    def timeout(self) -> httpx.Timeout | None:
        """The time limits that the user's httpx client was given, if any."""
        return _timeout_of(self._http_client)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            http = self._opened.pop(os.getpid(), None)
        if http is not None:
            http.close()
        elif self._http_client is not None:
            self._http_client.close()

    def __del__(self) -> None:
        # As OpenAI's client does: who drops a client without closing it leaks no sockets.
        if self._http_client is None and (http := self._opened.pop(os.getpid(), None)):
            with suppress(Exception):  # the interpreter may be ending
                http.close()

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return type(self)(self._http_client)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self, self._http_client)


class _LoopClient:
    """An httpx client that is closed with its event loop, unless it sends by the user's own.

    `asyncio.run` closes the asynchronous generators of its loop before the loop itself; that is
    the only notice that a loop gives of its end.
    """

    def __init__(self, http: httpx.AsyncClient, *, is_ours: bool) -> None:
        self.http = http
        self._closing = _close_at_the_end(http) if is_ours else None
        if self._closing is not None:
            with suppress(StopIteration):
                self._closing.__anext__().send(None)  # runs to the yield: the loop knows it now


async def _close_at_the_end(http: httpx.AsyncClient) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await http.aclose()


class AsyncConnections:
    """`Connections` of an `AsyncClient`: each event loop has its own."""

    def __init__(self, http_client: httpx.AsyncClient | None = None) -> None:
        self._http_client = http_client
        self._opened: dict[asyncio.AbstractEventLoop, _LoopClient] = {}
        self._closed = False
        self._lock = Lock()

    def http(self) -> httpx.AsyncClient:
        """Return the client of the running event loop. Raises `ClientClosed`."""
        given, running = self._http_client, asyncio.get_running_loop()
        with self._lock:
            _check_open(self._closed, given)
            # Nothing can use the connections of a closed loop any more.
            for loop in [loop for loop in self._opened if loop.is_closed()]:
                del self._opened[loop]
            if running not in self._opened:
                self._opened[running] = _LoopClient(
                    httpx.AsyncClient(
                        headers=None if given is None else given.headers,
                        transport=RetryTransport(AsyncDeadlineTransport(given)),
                    ),
                    is_ours=given is None,
                )
            return self._opened[running].http

    @property
    def timeout(self) -> httpx.Timeout | None:
        """The time limits that the user's httpx client was given, if any."""
        return _timeout_of(self._http_client)

    async def close(self) -> None:
        """Close the connections of the running event loop, and refuse calls from any."""
        with self._lock:
            self._closed = True
            opened = self._opened.pop(asyncio.get_running_loop(), None)
            self._opened.clear()
        if opened is not None:
            await opened.http.aclose()
        elif self._http_client is not None:
            await self._http_client.aclose()

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return type(self)(self._http_client)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self, self._http_client)


def _check_open(closed: bool, given: httpx.Client | httpx.AsyncClient | None) -> None:
    if closed or (given is not None and given.is_closed):
        raise ClientClosed("the client was closed; make a new one")


def _timeout_of(given: httpx.Client | httpx.AsyncClient | None) -> httpx.Timeout | None:
    return None if given is None or given.timeout == _HTTPX_TIMEOUT else given.timeout


def _reduced(
    connections: Connections | AsyncConnections, given: httpx.Client | httpx.AsyncClient | None
) -> tuple[Any, ...]:
    if given is not None:
        raise TypeError(
            "a client with an http_client of your own cannot be pickled: make it in each process"
        )
    return type(connections), ()
