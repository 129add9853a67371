"""Characters that cannot travel between models, JSON and databases."""

import re

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def replace_invalid(text: str) -> str:
    """Return `text` with NUL and lone surrogates replaced by U+FFFD.

    Models write both, but UTF-8 has no surrogates and PostgreSQL stores no NUL.
    """
    return _UNUSABLE.sub("\ufffd", text)
