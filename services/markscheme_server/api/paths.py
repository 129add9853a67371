"""`{…:id}` in a path: a name without a colon, which starts a verb (`/v1/rubrics/{id}:fork`)."""

from starlette.convertors import StringConvertor, register_url_convertor


class IdConvertor(StringConvertor):
    """Matches one path segment up to a colon."""

    regex = "[^/:]+"


register_url_convertor("id", IdConvertor())
