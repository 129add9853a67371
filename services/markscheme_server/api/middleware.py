"""What wraps every request: an id, a bound on the body, and the key where one is set."""

import hmac
import re
import secrets

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme.schema import ErrorDetail
from markscheme_server.api.errors import body

_REQUEST_ID = re.compile(r"[\w.:-]{1,100}")


class RequestId:
    """Gives a request its id (the caller's, when it is a plain one), in logs and in ``X-Request-ID``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["markscheme.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self.app(scope, receive, send_with_id)
        return None


class BodyTooLarge(Exception):
    """More bytes came than are taken."""


class BodyLimit:
    """Refuses a body above ``limit`` bytes, by its declared length or while it streams, in the one error shape.

    Starlette's own limiter answers in plain text.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            return await self._refuse(scope, receive, send)
        size, started, refused = 0, False, False

        async def counted() -> Message:
            nonlocal size, refused
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                refused = True
                raise BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if refused:
                return  # FastAPI's own answer to the broken read gives way to ours
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except BodyTooLarge:
            refused = True
        if refused and not started:
            await self._refuse(scope, receive, send)
        return None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = ErrorDetail(message=f"the body is larger than {self.limit} bytes; send several requests",
                             type="invalid_request_error", code="body_too_large")
        response = JSONResponse(body(Request(scope), detail), 413, {"Connection": "close"})
        await response(scope, receive, send)


class SharedKey:
    """Lets ``/v1`` calls through only with the deployment's key, when it has one."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.key):
            return await self.app(scope, receive, send)
        detail = ErrorDetail(message="send the service's key as 'Authorization: Bearer …' (MARKSCHEME_API_KEY)",
                             type="authentication_error", code="unauthorised")
        await JSONResponse(body(Request(scope), detail), 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        return None
