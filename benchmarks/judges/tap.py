"""A recording proxy between the service and a server.

When the caller leaves, the call to the server is dropped too, as it would be without the proxy.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SHOWN_CHARACTERS = 2000
_FORWARDED = ("authorization", "content-type")


@dataclass(frozen=True)
class Call:
    """One chat-completions call.

    Attributes:
        form: Form of structured output.
        length: Reply limit, with the name it was sent under.
        digest: Of the request's body.
        status: `None` where the caller left first.
        body: Of a refusal.
    """

    form: str
    length: dict[str, int]
    characters: int
    digest: str
    status: int | None
    seconds: float
    body: str = ""


@dataclass
class Tap:
    """The proxy. `url` is what the service uses; `upstream` is where its calls go."""

    upstream: str
    url: str = ""
    calls: list[Call] = field(default_factory=list)

    async def forward(self, request: Request) -> Response:
        """Forward one call and record it."""
        body = await request.body()
        started = time.monotonic()
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            headers = {
                name: request.headers[name] for name in _FORWARDED if name in request.headers
            }
            answer = asyncio.ensure_future(
                client.request(
                    request.method, self.upstream + request.url.path, content=body, headers=headers
                )
            )
            gone = asyncio.ensure_future(_left(request))
            try:
                await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
                response = answer.result() if answer.done() else None
            except httpx.TransportError as error:
                response = httpx.Response(502, text=f"the server broke off: {type(error).__name__}")
            finally:
                answer.cancel()
                gone.cancel()
        if request.method == "POST":
            self.calls.append(_described(body, response, time.monotonic() - started))
        if response is None:
            return Response(status_code=499)
        return Response(
            response.content, response.status_code, media_type=response.headers.get("content-type")
        )


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _described(body: bytes, response: httpx.Response | None, seconds: float) -> Call:
    asked: dict[str, Any] = json.loads(body)
    return Call(
        form=(asked.get("response_format") or {}).get("type", "none"),
        length={
            name: asked[name] for name in ("max_tokens", "max_completion_tokens") if name in asked
        },
        characters=sum(len(message["content"]) for message in asked["messages"]),
        digest=hashlib.sha256(body).hexdigest()[:16],
        status=None if response is None else response.status_code,
        seconds=round(seconds, 2),
        body="" if response is None or response.is_success else response.text[:SHOWN_CHARACTERS],
    )


@contextmanager
def tapping(upstream: str) -> Iterator[Tap]:
    """Run a proxy on a free port of loopback, in a thread."""
    tap = Tap(upstream)
    app = Starlette(routes=[Route("/{path:path}", tap.forward, methods=["GET", "POST"])])
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    tap.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.should_exit = True
        thread.join(10)
