"""``{…:id}`` in a route's path: a name without a colon, which is where a verb begins (``/v1/rubrics/{id}:fork``)."""

from starlette.convertors import StringConvertor, register_url_convertor


class IdConvertor(StringConvertor):
    regex = "[^/:]+"


register_url_convertor("id", IdConvertor())
