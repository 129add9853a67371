"""The real service on a real loopback socket, in a thread of the test's process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from urllib.request import urlopen

import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme.schema import ErrorBody
from markscheme_server.accounts.sessions import PAGES
from markscheme_server.api.connections import Connection, WaitingConnections
from markscheme_server.api.middleware import GONE
from markscheme_server.app import create_app
from markscheme_server.cli.server import listen
from markscheme_server.config import Settings


class OneErrorShape:
    """Record every error answer that does not have the one error shape, in any test."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.faults: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, content = 0, b""

        async def watched(message: Message) -> None:
            nonlocal status, content
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and status != GONE:
                content += message.get("body", b"")
                if not message.get("more_body", False):
                    self._check(scope, status, content)
            await send(message)

        await self.app(scope, receive, watched)
        return None

    def _check(self, scope: Scope, status: int, content: bytes) -> None:
        if scope["method"] == "HEAD" and not content:
            return
        if scope["path"].startswith(PAGES) and content.startswith(b"<!doctype html>"):
            return  # a browser gets a page
        try:
            ErrorBody.model_validate_json(content)
        except ValidationError:
            self.faults.append(f"{scope['method']} {scope['path']}: {status} {content[:200]!r}")


_first: list[FastAPI] = []
"""The application of the first service: see `share_routes`."""


def share_routes(app: FastAPI) -> None:
    """Let the services of this process share what FastAPI builds of included routers.

    It builds them, and their OpenAPI document, when each application first needs them, which takes
    longer than all else of a start; they are the same for all.
    """
    if not _first:
        _first.append(app)
    own = [route for route in app.router.routes if isinstance(route, Route)]
    included = [route for route in _first[0].router.routes if not isinstance(route, Route)]
    app.router.routes[:] = own + included
    app.openapi = _first[0].openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """uvicorn's server. It stops at once, where uvicorn looks every 0.1 s whether it should."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self.on_tick(0)
        await self._stop.wait()

    def stop(self) -> None:
        if self._loop is not None:  # else it did not start
            self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def running(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic, in_flight_s: int = 5
) -> Iterator[str]:
    """Serve until the block ends and yield the URL.

    At the end, requests in flight get ``in_flight_s``. Then check that every error answer had the
    one error shape.
    """
    listener = listen("127.0.0.1", 0)
    made = create_app(settings, clock=clock)
    share_routes(made)
    app = OneErrorShape(made)
    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=in_flight_s,
            ws="none",
            http=cast(Any, partial(Connection, waiting=WaitingConnections(1024))),
        )
    )
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with urlopen(f"{url}/healthz", timeout=60):  # builds the routes, one service at a time
            pass
        yield url
    finally:
        server.stop()
        thread.join()
        listener.close()
    assert app.faults == []
