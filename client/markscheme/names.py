"""Names in addresses, and help for names that do not exist. Standard library only."""

import difflib
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

_DOTS = re.compile(r"~*\.{1,2}")
"""What needs a tilde in front: a name of one or two dots, and one that looks like it then."""


def path_segment(name: str) -> str:
    """Return a name as one segment of a path: percent-encoded, and `..` as `~..`.

    Browsers and proxies resolve segments of dots, percent-encoded ones too.
    """
    return "~" * bool(_DOTS.fullmatch(name)) + quote(name, safe="")


def from_path_segment(segment: str) -> str:
    """Return the name of which `path_segment` made this."""
    name = unquote(segment)
    return name[1:] if name.startswith("~") and _DOTS.fullmatch(name) else name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" for the known name that is nearest, or nothing."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
