"""Middleware: request id, log line and metrics, body limit, authentication, rate limit."""

import asyncio
import math
import re
import secrets
import time
from urllib.parse import quote

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from markscheme.schema import ErrorDetail
from markscheme_server import metrics
from markscheme_server.accounts.sessions import COOKIE, PAGES
from markscheme_server.api.disconnect import ClientGone
from markscheme_server.api.drain import Drain
from markscheme_server.api.errors import answer, database_error, respond, wants_page
from markscheme_server.api.services import Services
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import TooManyRequests, Unauthorised, Unavailable
from markscheme_server.store.engine.database import DatabaseUnreachable

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
LOOK_UP_S = 5.0
"""Seconds after which authentication gives up on a database that does not answer."""
HEADERS = "markscheme.headers"
"""Scope key: headers to add to the answer, whichever layer answers."""
GONE = 499
"""Status that is counted and logged when the caller left before an answer began."""
_KEY_IN_PATH = re.compile(r"/compat/[^/]*/([^/]*)")
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)

log = structlog.get_logger()


class RequestIdMiddleware:
    """Gives a request its id, in logs and in `X-Request-ID`: the caller's, if well-formed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
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


class ObservabilityMiddleware:
    """Measures and logs requests. Of caller-chosen text, both hold the request id only.

    Leaves `markscheme.route` and `markscheme.status` in the scope for outer layers. Successful
    probes are logged at debug: they come every few seconds.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app, self.drain = app, drain
        self._templates: list[tuple[re.Pattern[str], str]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, recorded = time.perf_counter(), 0, False
        self.drain.last_request_at.value = time.monotonic()

        def record() -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                self._record(scope, status or GONE, time.perf_counter() - started)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if HEADERS in scope:
                    MutableHeaders(scope=message).update(scope[HEADERS])
                if self.drain.draining:
                    # A kept-alive connection would be cut; this way the next request goes to
                    # another replica.
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                record()  # before the last byte is sent, so that a caller finds it in /metrics
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientGone:
            pass  # there is nobody to answer, and nothing is wrong
        except asyncio.CancelledError:
            if status or not self.drain.draining:
                raise
            # Shutdown cancelled the request. uvicorn would answer 500, which clients do not retry.
            late = Unavailable(
                "the service stopped before this was done; send it again",
                code="draining",
                retry_after_s=1,
            )
            await answer(Request(scope), late)(scope, receive, watched)
        except Exception:
            status = status or 500
            raise
        finally:
            record()
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["markscheme.route"] = self._route(scope)
        scope["markscheme.status"] = status
        method = scope["method"] if scope["method"] in METHODS else metrics.OTHER
        metrics.REQUEST_SECONDS.labels(route=route, method=method, status=str(status)).observe(
            seconds
        )
        write = (
            log.debug
            if route in PROBES and status < 400
            else log.warning
            if status >= 500
            else log.info
        )
        write("request", method=method, route=route, status=status, seconds=round(seconds, 4))

    def _route(self, scope: Scope) -> str:
        """Return the template of the path, never the path itself, which holds ids."""
        if isinstance(route := scope.get("route"), Route):
            return route.path_format
        if "router" in scope:
            return metrics.OTHER
        # Answered before it reached the router: without a key, or with too large a body.
        if self._templates is None:
            # Paths without parameters first: a template could match them too.
            paths = sorted(scope["app"].openapi()["paths"], key=lambda path: "{" in path)
            self._templates = [(compile_path(path)[0], path) for path in paths]
        return next(
            (path for pattern, path in self._templates if pattern.match(scope["path"])),
            metrics.OTHER,
        )

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_traceback(message: Message) -> None:
            # Starlette puts the traceback with the exception's message there; uvicorn would log it.
            await send(
                {**message, "message": ""} if message["type"].endswith(".failed") else message
            )

        try:
            await self.app(scope, receive, without_traceback)
        except Exception:
            log.error("lifespan_failed", exc_info=True)
            raise


class BodyTooLarge(Exception):
    """The body is larger than the limit."""


class BodyLimitMiddleware:
    """Refuses a body above `limit` bytes, by its declared length or while it streams.

    Starlette's own limiter answers in plain text.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit
        self._too_large = ErrorDetail(
            message=f"the body is larger than {limit} bytes; send several requests",
            type="invalid_request_error",
            code="body_too_large",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if declared and "transfer-encoding" in headers:
            # Request smuggling: a proxy in front may have used the other length.
            detail = ErrorDetail(
                message="send Content-Length or Transfer-Encoding, not both",
                type="invalid_request_error",
                code="bad_request",
            )
            return await self._refuse(detail, 400, scope, receive, send)
        # 20 digits exceed any limit, and `int` refuses texts of thousands of digits.
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            return await self._refuse(self._too_large, 413, scope, receive, send)
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
                return  # FastAPI answers the failed read too; ours replaces it
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except BodyTooLarge:
            refused = True
        if refused and not started:
            await self._refuse(self._too_large, 413, scope, receive, send)
        return None

    async def _refuse(
        self, detail: ErrorDetail, status: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = respond(Request(scope), status, detail, {"Connection": "close"})
        await response(scope, receive, send)


class HeadMiddleware:
    """Answers HEAD as GET without the body, which FastAPI's routes do not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send(
                {**message, "body": b""} if message["type"] == "http.response.body" else message
            )

        return await self.app({**scope, "method": "GET"}, receive, without_body)


class AuthenticationMiddleware:
    """Authenticates requests to `/v1/`, `/compat/` and the pages before their body is read.

    `/compat/` takes the key from the path. Pages also take a browser's session, and redirect to the
    sign-in page without one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        in_path = _KEY_IN_PATH.match(scope["path"]) if scope["type"] == "http" else None
        if scope["type"] != "http" or not (in_path or _needs_caller(scope["path"])):
            return await self.app(scope, receive, send)
        request = Request(scope)
        authorization = request.headers.get("authorization", "")
        scheme, _, token = authorization.partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else None
        by_session = scope["path"].startswith(PAGES) and not authorization
        services: Services = scope["state"]["services"]
        try:
            async with asyncio.timeout(LOOK_UP_S):
                scope["markscheme.caller"] = (
                    await services.sessions.resume(request.cookies.get(COOKIE))
                    if by_session
                    else await services.authenticator.authenticate(in_path[1] if in_path else key)
                )
        except Unauthorised as error:
            to_sign_in = by_session and wants_page(request)
            response = _to_sign_in(scope) if to_sign_in else answer(request, error)
            return await response(scope, receive, send)
        except TimeoutError as error:
            return await answer(request, database_error(DatabaseUnreachable(str(error))))(
                scope, receive, send
            )
        except SQLAlchemyError as error:
            return await answer(request, database_error(error))(scope, receive, send)
        return await self.app(scope, receive, send)


def _needs_caller(path: str) -> bool:
    if path.startswith(PAGES):
        return path != f"{PAGES}signin" and not path.startswith(f"{PAGES}static/")
    return path.startswith("/v1/")


def _to_sign_in(scope: Scope) -> RedirectResponse:
    """Redirect to the sign-in page and back. The path is relative, to work behind any proxy."""
    wanted = scope["raw_path"].decode("latin-1").partition(PAGES)[2]
    query = scope["query_string"].decode("latin-1")
    back = f"?next={quote(f'{wanted}?{query}' if query else wanted, safe='')}"
    way = "../" * wanted.count("/") + "signin"
    return RedirectResponse(way + (back if scope["method"] == "GET" and wanted else ""), 303)


class RateLimitMiddleware:
    """Rejects requests beyond a team's limit a minute, before the body is read.

    A burst within the limit is delayed as `markscheme_server.accounts.rate_limit` decides. Every
    response to a team with a limit states what is left, in OpenAI's headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        caller: Caller | None = scope.get("markscheme.caller")
        if caller is None or caller.rpm is None:
            return await self.app(scope, receive, send)
        services: Services = scope["state"]["services"]
        decision = await services.rates.hit(caller.team, caller.rpm)
        scope[HEADERS] = {
            "x-ratelimit-limit-requests": str(caller.rpm),
            "x-ratelimit-remaining-requests": str(decision.state.remaining),
            "x-ratelimit-reset-requests": format_duration(decision.state.reset_s),
        }
        if decision.admitted:
            await asyncio.sleep(decision.delay_s)
            return await self.app(scope, receive, send)
        metrics.RATE_LIMITED.inc()
        error = TooManyRequests(
            f"the team {caller.team!r} may send {caller.rpm} requests a minute; send this one "
            "again after Retry-After seconds",
            code="rate_limited",
            retry_after_s=max(1, math.ceil(decision.state.retry_after_s)),
        )
        return await answer(Request(scope), error)(scope, receive, send)


def format_duration(seconds: float) -> str:
    """Format seconds as OpenAI's headers do: `120ms`, `1.2s`, `1m3s`."""
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 10), 600)
    return (f"{minutes}m" if minutes else "") + f"{rest / 10:g}s"
