"""Reading request bodies: JSON that is JSON, checked before it becomes an object."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from markscheme_server.api import paths  # noqa: F401 (the paths of all routes use its convertor)
from markscheme_server.errors import BadRequest


class StrictRequest(Request):
    """A request whose body is refused when it is not UTF-8 JSON: no NaN, no lone surrogate, no deep nesting."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise NotJSON(f"the body is not valid JSON: {error}") from error


class NotJSON(Exception):
    """Carries the decoder's words past FastAPI, which would replace them."""


class StrictRoute(APIRoute):
    """A route that reads its body through :class:`StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            body = StrictRequest(request.scope, request.receive)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise BadRequest("send the body without Content-Encoding", code="unsupported_encoding")
            return await handle(body)

        return strict
