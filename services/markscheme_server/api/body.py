"""Read request bodies as strict JSON."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from markscheme.messages import normal_message, separate_results, visible_message
from markscheme.schema import Message
from markscheme_server.errors import BadRequest
from markscheme_server.paths import EncodedPath

LARGE_BYTES = 128 * 1024
"""Larger bodies have their messages validated in a thread, so that others are served meanwhile."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictRequest(Request):
    """A request whose body must be UTF-8 JSON without NaN and deep nesting."""

    async def json(self) -> Any:
        """Parse the body; refuse it with 400 when it is not JSON."""
        body = await self.body()
        try:
            value = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            if not _SURROGATE.search(body):
                raise _not_json(error) from error
            value = _parse_surrogates(body)
        if len(body) > LARGE_BYTES:
            await asyncio.to_thread(_validate_messages, value)
        return value


def _validate_messages(value: Any) -> None:
    """Replace the messages of a body by models, which its validation then takes as they are.

    What is not valid is left to that validation, which says what is wrong and where.
    """
    if not isinstance(value, dict):
        return
    for name, items in value.items():
        if not isinstance(items, list):
            continue
        if name in ("groups", "rollouts", "entries"):
            for item in items:
                _validate_messages(item)
        elif name == "prompt":
            _replace(items, normal_message)
        elif name == "messages":
            _replace(items, visible_message)
        elif name in ("teacher_responses", "student_responses", "responses"):
            for response in items:
                if isinstance(response, list):
                    _replace(response, visible_message)


def _replace(messages: list[Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    messages[:] = separate_results(messages)
    for index, message in enumerate(messages):
        if isinstance(message, dict):
            with suppress(ValueError, RecursionError):
                messages[index] = Message.model_validate(change(message))


def _parse_surrogates(body: bytes) -> Any:
    """Parse JSON that escapes half a surrogate pair, as a model's output may.

    Each field decides what happens to it: it becomes U+FFFD in a rollout's text, and is refused in
    a prompt or an id.
    """
    try:
        # All but the halves must be as it must be in every body: no NaN, no deep nesting.
        from_json(_SURROGATE.sub(rb"\\uff", body), allow_inf_nan=False)
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> HTTPException:
    # FastAPI passes an HTTPException on, and would replace the message of any other exception.
    return HTTPException(400, f"the body is not valid JSON: {error}")


class StrictRoute(APIRoute):
    """A route that reads its body through `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            body = StrictRequest(request.scope, request.receive)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise BadRequest(
                    "send the body without Content-Encoding", code="unsupported_encoding"
                )
            return await handle(body)

        return strict


class EncodedRoute(EncodedPath, StrictRoute):
    """A route of a JSON body whose path is matched as it was sent."""
