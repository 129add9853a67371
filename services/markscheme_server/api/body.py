"""Reading request bodies: JSON that is JSON, checked before it becomes an object."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from markscheme_server.api import paths  # noqa: F401 (the paths of all routes use its convertor)
from markscheme_server.errors import BadRequest

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictRequest(Request):
    """A request whose body is refused when it is not UTF-8 JSON: no NaN, no deep nesting."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            if _SURROGATE.search(body):
                return _with_surrogates(body)
            raise NotJSON(f"the body is not valid JSON: {error}") from error


def _with_surrogates(body: bytes) -> Any:
    """JSON that escapes half a surrogate pair, as a model's output may. The fields decide what becomes of it: a
    rollout's text shows it as U+FFFD, a prompt or an id is refused."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotJSON(f"the body is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


class NotJSON(Exception):
    """Carries the decoder's words past FastAPI, which would replace them."""


class StrictRoute(APIRoute):
    """A route that reads its body through :class:`StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            body = StrictRequest(request.scope, request.receive)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise BadRequest(
                    "send the body without Content-Encoding", code="unsupported_encoding"
                )
            return await handle(body)

        return strict
