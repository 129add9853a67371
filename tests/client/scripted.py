"""A service that answers, refuses or stays silent as told, and calls of both clients to it."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from markscheme import AsyncClient, Client
from markscheme.schema import Rubric, ScoreBatch

RUBRIC = {
    "object": "rubric",
    "id": "rub_1",
    "version": 1,
    "parent_id": None,
    "prompt_key": "k",
    "prompt": [],
    "content_hash": "h",
    "criteria": [],
    "maximum_score": 1,
    "origin": "induced",
    "tags": [],
    "team": "default",
    "visibility": "private",
    "shared_with": [],
    "retired_at": None,
    "created_at": "2026-01-01T00:00:00Z",
    "provenance": {},
}
ONE = {"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "x"}]}
GROUP = {
    "object": "score.group",
    "id": "g",
    "status": "unscored",
    "error": None,
    "rubric": None,
    "teacher": None,
    "rollouts": [],
}
SUMMARY = {
    "object": "score.summary",
    "counts": {"rollouts": 1, "scored": 0, "unscored": 1},
    "usage": {"judge_calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_verdicts": 0},
}
RUN: dict[str, Any] = {
    "object": "run",
    "id": "support-7b-ropd-with-a-rather-long-name-2026-11-27-b3",
    "team": "default",
    "state": "running",
    "reason": None,
    "facts": {},
    "steps": 2000,
    "first_step": 0,
    "last_step": 999,
    "created_at": "2026-11-27T00:00:00Z",
    "last_scored_at": "2026-11-27T04:00:00Z",
    "groups": 4000,
    "rollouts": 32000,
    "unscored": 640,
    "reward_first": 0.44,
    "reward_now": 0.70,
    "teacher": 0.85,
    "curve": [0.44, None, *([0.6] * 38)],
    "cost_usd": 15.05,
    "saved_usd": 2.5,
    "unpriced_calls": 0,
    "findings": {"alarm": 1, "watch": 2},
}
RUN_DETAIL = RUN | {
    "reasons": {"unavailable": 640},
    "judges": ["m"],
    "rubrics": 3,
    "truncated": 10,
    "flat_groups": 2,
    "comparable_groups": 3900,
    "second_judge": 0,
    "second_judge_now": None,
    "projected_usd": 30.1,
    "pruned_until": None,
}
HEARTBEAT = {"object": "heartbeat"}


@dataclass
class Reply:
    """One answer: after ``wait_s`` its lines are sent, one every ``every_s``.

    Bytes are sent unchanged. If ``status`` is ``None``, the connection is dropped.
    """

    status: int | None = 200
    lines: list[Any] = field(default_factory=lambda: [RUBRIC])
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    every_s: float = 0.0


def refusal(status: int, code: str, retry_after: str | None = None) -> Reply:
    body = {
        "error": {"message": "scripted", "type": "t", "param": None, "code": code},
        "request_id": "req_1",
    }
    return Reply(status, [body], {"Retry-After": retry_after} if retry_after else {})


def as_line(value: Any) -> bytes:
    """As the service writes it: no spaces, and all but control characters as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class ScriptedService:
    """Send the replies in order and repeat the last; record each request's time and headers."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [Reply()]
        self.asked: list[tuple[float, dict[str, str], Any]] = []
        self.closed = threading.Event()
        service, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"] or 0))
                self._answer(json.loads(body) if body else None)

            def _answer(self, body: Any) -> None:
                with lock:
                    reply = service.replies[min(len(service.asked), len(service.replies) - 1)]
                    service.asked.append(
                        (time.monotonic(), {k.lower(): v for k, v in self.headers.items()}, body)
                    )
                service.closed.wait(reply.wait_s)
                self.close_connection = True
                if reply.status is None:
                    return
                # The client may have left: that is what it is tested for.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._write(reply)

            def _write(self, reply: Reply) -> None:
                assert reply.status is not None
                self.send_response(reply.status)
                for name, value in (reply.headers | {"connection": "close"}).items():
                    self.send_header(name, value)
                self.end_headers()
                for line in reply.lines:
                    service.closed.wait(reply.every_s)
                    self.wfile.write(line if isinstance(line, bytes) else as_line(line))

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def header(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, headers, _ in self.asked]

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def induce(url: str, **options: Any) -> Rubric:
    with Client(url) as client:
        return client.induce("p", student_responses=["s"], **options)


def induce_async(url: str, **options: Any) -> Rubric:
    async def run() -> Rubric:
        async with AsyncClient(url) as client:
            return await client.induce("p", student_responses=["s"], **options)

    return asyncio.run(run())


def score(url: str, **options: Any) -> ScoreBatch:
    with Client(url) as client:
        return client.score([ONE], **options)


def score_async(url: str, **options: Any) -> ScoreBatch:
    async def run() -> ScoreBatch:
        async with AsyncClient(url) as client:
            return await client.score([ONE], **options)

    return asyncio.run(run())


BOTH_INDUCE = pytest.mark.parametrize("call", [induce, induce_async])
BOTH_SCORE = pytest.mark.parametrize("call", [score, score_async])
ALL = pytest.mark.parametrize("call", [induce, induce_async, score, score_async])
Call = Callable[..., Any]
