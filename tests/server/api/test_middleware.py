"""Test the measuring layer on cancelled, abandoned and failed requests, without a service."""

import asyncio
import json
from typing import Any

import pytest
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme_server.api.disconnect import ClientGone
from markscheme_server.api.drain import Drain
from markscheme_server.api.middleware import (
    BodyLimitMiddleware,
    ObservabilityMiddleware,
    RequestIdMiddleware,
)

SECRET = "planted-secret"


async def nothing() -> Message:
    return {"type": "lifespan.startup"}


def scope(path: str = "/v1/scores") -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": SECRET.encode(),
        "headers": [],
        "router": None,
    }


async def observe(
    app: ASGIApp, drain: Drain, *, cancel: bool = False
) -> tuple[list[Message], list[Any]]:
    """Run one request; return what is sent and what is logged."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with structlog.testing.capture_logs() as logged:
        task = asyncio.ensure_future(
            RequestIdMiddleware(ObservabilityMiddleware(app, drain))(scope(), nothing, send)
        )
        await asyncio.sleep(0.01)
        if cancel:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return sent, [
        {key: line[key] for key in ("event", "log_level", "status", "route")} for line in logged
    ]


async def forever(_scope: Scope, _receive: Receive, _send: Send) -> None:
    await asyncio.Event().wait()


async def test_what_the_end_cuts_off_may_be_sent_again() -> None:
    sent, logged = await observe(forever, Drain(draining=True), cancel=True)
    assert sent[0]["status"] == 503
    headers = dict(sent[0]["headers"])
    assert headers[b"retry-after"] == b"1"
    assert headers[b"connection"] == b"close"
    assert headers[b"x-request-id"].startswith(b"req_")
    assert json.loads(sent[1]["body"])["error"]["code"] == "draining"
    assert logged == [{"event": "request", "log_level": "warning", "status": 503, "route": "other"}]


async def test_cancelled_otherwise_it_stays_cancelled() -> None:
    sent, logged = await observe(forever, Drain(), cancel=True)
    assert sent == []
    assert logged == [{"event": "request", "log_level": "info", "status": 499, "route": "other"}]


async def test_a_caller_that_left_is_no_error() -> None:
    async def left(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ClientGone

    sent, logged = await observe(left, Drain())
    assert sent == []
    assert logged == [{"event": "request", "log_level": "info", "status": 499, "route": "other"}]


async def test_a_request_is_counted_before_its_caller_has_the_answer() -> None:
    seen: list[int] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        seen.append(len(logged))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        seen.append(len(logged))

    with structlog.testing.capture_logs() as logged:

        async def send(_message: Message) -> None:
            pass

        await ObservabilityMiddleware(app, Drain())(scope(), nothing, send)
    assert seen == [0, 1]
    assert len(logged) == 1


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_failing_start_or_end_is_told_without_its_words(phase: str) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": f"lifespan.{phase}.failed", "message": f"Traceback: {SECRET}"})
        raise ValueError(SECRET)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with structlog.testing.capture_logs() as logged, pytest.raises(ValueError, match=SECRET):
        await ObservabilityMiddleware(app, Drain())({"type": "lifespan"}, nothing, send)
    assert sent == [{"type": f"lifespan.{phase}.failed", "message": ""}]
    assert [line["event"] for line in logged] == ["lifespan_failed"]


async def test_a_body_of_two_lengths_is_refused_also_where_the_server_lets_it_pass() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        pytest.fail("it was let through")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    request = scope() | {"headers": headers, "markscheme.request_id": "req_1"}
    await BodyLimitMiddleware(app, 10)(request, nothing, send)
    assert sent[0]["status"] == 400
    error = json.loads(sent[1]["body"])["error"]
    assert error["message"] == "send Content-Length or Transfer-Encoding, not both"
