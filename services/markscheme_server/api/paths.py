"""Ids in paths: those of rubrics and the like, and those of runs, which may be any text."""

from urllib.parse import unquote

from starlette.convertors import StringConvertor, register_url_convertor


class IdConvertor(StringConvertor):
    """`{…:id}`: one path segment up to a colon, which starts a verb (`/v1/rubrics/{id}:fork`)."""

    regex = "[^/:]+"


class EncodedConvertor(StringConvertor):
    """`{…:encoded}`: one path segment, percent-encoded; see `body.EncodedRoute`."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return what the segment stands for."""
        return unquote(value)


register_url_convertor("id", IdConvertor())
register_url_convertor("encoded", EncodedConvertor())
