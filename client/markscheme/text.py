"""What text may hold that travels between models, the wire and databases."""

import re

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def replace_invalid(text: str) -> str:
    """``text`` with NUL and lone surrogates made visible as U+FFFD.

    Models write both; UTF-8 has no surrogates, and PostgreSQL takes no NUL.
    """
    return _UNUSABLE.sub("\ufffd", text)
