"""Ids in addresses: those of rubrics and the like, and those of runs, which may be any text."""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_plus

from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Match

from markscheme.names import from_path_segment


class IdConvertor(StringConvertor):
    """`{…:id}`: one path segment up to a colon, which starts a verb (`/v1/rubrics/{id}:fork`)."""

    regex = "[^/:]+"


class EncodedConvertor(StringConvertor):
    """`{…:encoded}`: one path segment, percent-encoded; see `EncodedPath`."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return what the segment stands for."""
        return from_path_segment(value)


class EncodedPath(APIRoute):
    """A route that is matched before `%2F` becomes `/`: a run's id may have slashes.

    After decoding, `/v1/runs/a%2Fsteps` (a run) and `/v1/runs/a/steps` would be the same.
    """

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        """Match the path as it was sent."""
        raw = scope.get("raw_path")
        if raw is None:
            return super().matches(scope)
        return super().matches({**scope, "path": raw.decode("latin-1")})


def names_in_query(query: bytes, parameter: str) -> list[str]:
    """Return the different names that a query gives: `a=x&a=y`, or `a=x,y`, in their order.

    Names may be any text: a comma of a name is `%2C`, as forms and clients send it.
    """
    found: dict[str, None] = {}
    for part in query.decode("latin-1").split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) == parameter:
            found |= dict.fromkeys(unquote_plus(each) for each in value.split(",") if each)
    return list(found)


register_url_convertor("id", IdConvertor())
register_url_convertor("encoded", EncodedConvertor())
