"""The real service on a real loopback socket, in a thread of the test's process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from markscheme_server.app import create_app
from markscheme_server.config import Settings
from markscheme_server.serving import listen


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve until the block ends; yields the URL."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error", timeout_graceful_shutdown=5))
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
