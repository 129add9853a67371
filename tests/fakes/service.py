"""The real service on a real loopback socket, in a thread of the test's process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme.schema import ErrorBody
from markscheme_server.api.middleware import GONE
from markscheme_server.app import create_app
from markscheme_server.cli.server import listen
from markscheme_server.config import Settings


class OneErrorShape:
    """Notes every answer that is no success and has not the one error shape, in whatever test it is given."""

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


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve until the block ends; yields the URL. Then no answer may have had another error shape than the one."""
    listener = listen("127.0.0.1", 0)
    app = OneErrorShape(create_app(settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # FastAPI builds its routes at the first request. Two services of one process that get theirs at a time build
        # from the same parts, and pydantic warns of what it finds half done: so each is asked before the next starts.
        httpx.get(f"{url}/healthz", timeout=30)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    assert app.faults == []
