"""Characters that cannot travel between models, JSON and databases."""

import re

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def replace_invalid(text: str) -> str:
    """Return `text` with NUL and lone surrogates replaced by U+FFFD.

    Models write both, but UTF-8 has no surrogates and PostgreSQL stores no NUL.
    """
    return text if _is_usable(text) else _UNUSABLE.sub("\ufffd", text)


def check_valid(text: str) -> str:
    """Return `text` if it has no NUL and no lone surrogate. Raises `ValueError`."""
    if not _is_usable(text):
        raise ValueError("must not contain the NUL character or half of a surrogate pair")
    return text


def is_blank(text: str) -> bool:
    """Return whether nothing of `text` can be seen: it holds white space and invisible characters.

    Such as the zero-width space, which `str.strip` leaves.
    """
    return not any(each.isprintable() and not each.isspace() for each in text)


def _is_usable(text: str) -> bool:
    """Return whether there is nothing to replace; 20 times faster than the expression."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
