"""One error body for every answer that is not a success."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from markscheme import schema
from markscheme.schema import ErrorBody, ErrorDetail
from markscheme.vocabulary import UnscoredReason
from markscheme_server.accounts.sessions import PAGES
from markscheme_server.api.disconnect import ClientGone
from markscheme_server.errors import (
    BadGateway,
    PaymentRequired,
    ServiceError,
    Unauthorised,
    Unavailable,
    Unprocessable,
)
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.engine.database import TeamErased, fault_of, is_disk_full

log = structlog.get_logger()

_BY_STATUS = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "unauthorised"),
    403: ("permission_error", "forbidden"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "body_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
}
_TYPE_NAMES = frozenset(
    {"str", "int", "float", "bool", *(name for name in dir(schema) if name[0].isupper())}
)
_INTERNAL = "an internal error; nothing was scored"
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 402, 403, 404, 405, 413, 422, 429, 500, 502, 503)
}
"""The errors of every route, for the OpenAPI document."""


_PATTERNS = {
    r"^[^\x00]*$": "must not contain the NUL character",
    r"^[^\x00-\x1f\x7f]+$": "must not contain a control character, such as a tab or a line end",
    "^[0-9a-f]{64}$": "must be 64 hexadecimal digits in lower case",
}
"""What the wire contract's patterns demand, for people."""


def body(request: Request, detail: ErrorDetail) -> dict[str, Any]:
    """Return the error body, with the request's id."""
    return ErrorBody(
        error=detail, request_id=request.scope.get("markscheme.request_id", "")
    ).model_dump(mode="json")


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for a page; what a program asks for is never HTML."""
    return request.scope["path"].startswith(PAGES) and "text/html" in request.headers.get(
        "accept", ""
    )


def respond(
    request: Request, status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error: the one body, or to a browser a page, which the application makes."""
    if wants_page(request):
        page: Response = request.app.state.error_page(request, status, detail, headers or {})
        return page
    return JSONResponse(body(request, detail), status, headers)


def answer(request: Request, error: ServiceError) -> Response:
    """Return the answer for a service error."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return respond(request, error.status, detail, headers)


def database_error(error: SQLAlchemyError) -> ServiceError:
    """Log an error of a query and return the answer to it.

    It is 503 only where the database is away or cannot store.
    """
    if isinstance(error, TeamErased):
        return Unauthorised("the team of this key was erased", code="team_erased")
    fault = fault_of(error)
    if fault == "database":
        log.error("database_error", error=type(error).__name__)
        return Unavailable(
            "the disk of the database is full; nothing was stored"
            if is_disk_full(error)
            else "the database did not answer; try again",
            code="database",
            retry_after_s=1,
        )
    if fault == "data":
        log.warning("value_refused", error=type(error).__name__)
        return Unprocessable(
            "a value of this request is out of bounds: a number that is too large, or a text with "
            "NUL or half a character",
            code="invalid_value",
        )
    log.error("query_failed", exc_info=error)
    return ServiceError(_INTERNAL, code="internal")


def judge_error(failure: JudgeFailure) -> ServiceError:
    """Return the answer to a judge's failure.

    422 where the caller must change the request, 402 for a budget, 503 where a retry may help, and
    502 where neither does: the model's reply is of no use, or the judge is set up wrongly.
    """
    if failure.reason in (
        UnscoredReason.NO_RUBRIC,
        UnscoredReason.NOT_APPLICABLE,
        UnscoredReason.NOT_SUPPORTED,
        UnscoredReason.TOO_LARGE,
        UnscoredReason.REFUSED,
    ):
        return Unprocessable(str(failure), code=failure.reason)
    if failure.reason is UnscoredReason.BUDGET:
        return PaymentRequired(str(failure), code="insufficient_quota")
    if failure.reason in (
        UnscoredReason.PARSE_FAILURE,
        UnscoredReason.OFF_MENU,
        UnscoredReason.TRUNCATED,
        UnscoredReason.CANARY_FAILED,
    ):
        return BadGateway(str(failure), code="judge_reply")
    if failure.reason in (UnscoredReason.MISCONFIGURED, UnscoredReason.QUOTA):
        return BadGateway(str(failure), code=failure.reason)
    return Unavailable(str(failure), code=failure.reason, retry_after_s=5)


def install(app: FastAPI) -> None:
    """Make the application answer every error in the one shape."""

    async def service_error(request: Request, error: ServiceError) -> Response:
        return answer(request, error)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = _first_error(error.errors())
        place = [str(part) for part in first["loc"] if part != "body" and _names_a_field(part)]
        # The input is not repeated: it may not be encodable, and it may be a rollout.
        message = str(first["msg"]).removeprefix("Value error, ")
        message = _PATTERNS.get(first.get("ctx", {}).get("pattern"), message)
        return respond(
            request,
            422,
            ErrorDetail(
                message=f"{'.'.join(place)}: {message}" if place else message,
                type="invalid_request_error",
                param=".".join(place) or None,
                code="invalid_value",
            ),
        )

    async def not_unicode(request: Request, _error: UnicodeEncodeError) -> Response:
        return respond(
            request,
            422,
            ErrorDetail(
                message="the body holds half of a surrogate pair where it must not",
                type="invalid_request_error",
                code="invalid_value",
            ),
        )

    async def http_error(request: Request, error: HTTPException) -> Response:
        kind, code = _BY_STATUS.get(error.status_code, ("invalid_request_error", "http_error"))
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := _methods(app, request.scope["path"])):
            headers["Allow"] = ", ".join(methods)
        return respond(
            request,
            error.status_code,
            ErrorDetail(message=str(error.detail), type=kind, code=code),
            headers,
        )

    async def client_gone(_request: Request, _error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it; it is for the log

    async def query_failed(request: Request, error: SQLAlchemyError) -> Response:
        return answer(request, database_error(error))

    async def timed_out(request: Request, _error: TimeoutError) -> Response:
        return answer(
            request,
            Unavailable("the request's time ran out", code=UnscoredReason.TIMEOUT, retry_after_s=1),
        )

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected_error", error=type(error).__name__)
        response = answer(request, ServiceError(_INTERNAL, code="internal"))
        response.headers.update(
            {
                "X-Request-ID": request.scope.get("markscheme.request_id", ""),
                **request.scope.get("markscheme.headers", {}),
            }
        )
        return response

    app.add_exception_handler(ServiceError, service_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(UnicodeEncodeError, not_unicode)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.add_exception_handler(SQLAlchemyError, query_failed)  # type: ignore[arg-type]
    app.add_exception_handler(TimeoutError, timed_out)  # type: ignore[arg-type]
    app.add_exception_handler(ClientGone, client_gone)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, unexpected)


def _first_error(errors: Sequence[Any]) -> Any:
    """Return the first error; for a union, that of the type in which validation came furthest."""
    start = errors[0]["loc"][: _count_fields(errors[0]["loc"])]
    return max(
        (error for error in errors if error["loc"][: len(start)] == start),
        key=lambda e: len(e["loc"]),
    )


def _count_fields(place: Sequence[Any]) -> int:
    """Count the parts of a location before the first that names a type of a union."""
    return next((i for i, part in enumerate(place) if not _names_a_field(part)), len(place))


def _names_a_field(part: Any) -> bool:
    """Tell a field or an index from pydantic's own name of a type or a validator."""
    if isinstance(part, int):
        return True
    # The name of a header holds hyphens.
    return part.replace("-", "_").isidentifier() and part not in _TYPE_NAMES


def _methods(app: FastAPI, path: str) -> list[str]:
    """Return all methods of a path: the router names only those of the first route that matches."""
    paths = app.openapi()["paths"]
    matching = [template for template in paths if compile_path(template)[0].match(path)]
    # Of the templates that match, the longest is the most specific.
    methods = {method.upper() for method in paths[max(matching, key=len)]} if matching else set()
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
