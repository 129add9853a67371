"""What text may hold that travels between models, the wire and databases."""

import re

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with NUL and lone surrogates made visible as U+FFFD.

    Models write both; UTF-8 has no surrogates, and PostgreSQL takes no NUL.
    """
    return text if _is_usable(text) else _UNUSABLE.sub("\ufffd", text)


def _is_usable(text: str) -> bool:
    """Whether there is nothing to replace; some twenty times as fast as to search for it by the expression."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
