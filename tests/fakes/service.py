"""The real service on a real loopback socket, in a thread of the test's process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme.schema import ErrorBody
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
        try:
            ErrorBody.model_validate_json(content)
        except ValidationError:
            self.faults.append(f"{scope['method']} {scope['path']}: {status} {content[:200]!r}")


_included: list[BaseRoute] = []
"""The included routers of the first service: see `share_routes`."""


def share_routes(app: FastAPI) -> None:
    """Let the services of this process share what FastAPI builds of included routers.

    It builds them at the first request of each application, which takes longer than all else of a
    start; they are the same for all.
    """
    own = [route for route in app.router.routes if isinstance(route, Route)]
    if not _included:
        _included.extend(route for route in app.router.routes if not isinstance(route, Route))
    app.router.routes[:] = own + _included


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve until the block ends and yield the URL.

    At the end, check that every error answer had the one error shape.
    """
    listener = listen("127.0.0.1", 0)
    made = create_app(settings)
    share_routes(made)
    app = OneErrorShape(made)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        httpx.get(f"{url}/healthz", timeout=60)  # builds the routes, one service at a time
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    assert app.faults == []
