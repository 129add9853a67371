"""How criteria and their categories are named on pages."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markscheme_server.pages.words import CATEGORIES

_GUARD = re.compile(r"\s*\bCounts only (for|if|when)\b", re.IGNORECASE)
_GUARD_WORDS = re.compile(r"Counts (only) (for a response that)?", re.IGNORECASE)


def headline(text: str) -> tuple[str, str]:
    """Split a criterion into its statement and the condition that the builtin judge adds to it."""
    match = _GUARD.search(text)
    if match is None or match.start() == 0:
        return text, ""
    return text[: match.start()], text[match.start() :].strip()


@dataclass(frozen=True, slots=True)
class Label:
    """How a criterion is shown in a list.

    `condition`: the condition of `headline` in short, empty without one. `note`: what tells it from
    others with the same statement.
    """

    statement: str
    condition: str
    note: str = ""


def labels(criteria: Sequence[tuple[str, str]]) -> list[Label]:
    """Return labels of criteria, no two of them alike. `criteria`: text and a name of each.

    A criterion whose statement others have too shows its condition, and its name if that is the
    same.
    """
    found = []
    for text, _ in criteria:
        statement, condition = headline(text)
        short = _GUARD_WORDS.sub(lambda m: "only if it" if m[2] else "only ", condition)
        found.append((statement, short.removesuffix(".")))
    statements, both = Counter(statement for statement, _ in found), Counter(found)
    made = []
    for (statement, condition), (_, name) in zip(found, criteria, strict=True):
        notes = []
        if statements[statement] > 1 and condition:
            notes.append(condition)
        if both[statement, condition] > 1:
            notes.append(name)
        made.append(Label(statement, condition, ", ".join(notes)))
    return made


def category_title(category: str | None) -> str:
    """Return the title of a category of criteria."""
    return CATEGORIES.get(category, "Other criteria")
