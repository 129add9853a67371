"""A constraint parsed from a prompt, and helpers that put it into words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Constraint:
    """A check, the criterion that states it, and the passage of the prompt it comes from.

    ``text`` is the criterion's statement, ``source`` the prompt's own words. ``firm``: the prompt
    states the constraint; it is not inferred.
    """

    check: Mapping[str, Any]
    text: str
    source: str
    firm: bool = True


def quoted_list(phrases: list[str], last: str = "and") -> str:
    """Join quoted phrases: “a”, “b” and “c”."""
    quoted = [f"“{phrase}”" for phrase in phrases]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def in_words(low: int | None, high: int | None, one: str, many: str | None = None) -> str:
    """Put bounds into words, such as "at least 3 words", "exactly 1 title" or "no commas"."""
    many = many or f"{one}s"
    if high == 0:
        return f"no {many}"
    if low == high:
        return f"exactly {low} {one if low == 1 else many}"
    if high is None:
        return f"at least {low} {one if low == 1 else many}"
    if low is None or low == 0:
        return f"at most {high} {one if high == 1 else many}"
    return f"between {low} and {high} {many}"
