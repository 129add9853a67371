"""Parse a prompt's constraints: each becomes a check, a statement and the passage it comes from.

Rules decide, not a model: they find only what they know, and never guess.
"""

import json

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.parse_counts import parse_counts
from markscheme_server.rules.parse_format import parse_format
from markscheme_server.rules.parse_keywords import parse_keywords
from markscheme_server.rules.parse_repeat import parse_repeat
from markscheme_server.rules.prompt import parse_prompt

__all__ = ["Constraint", "parse_constraints"]


def parse_constraints(prompt: str) -> list[Constraint]:
    """Return the constraints of a prompt by family, each check once, without contradictions."""
    text = parse_prompt(prompt)
    found: dict[str, Constraint] = {}
    for family in (parse_format, parse_counts, parse_keywords, parse_repeat):
        for constraint in family(text):
            found.setdefault(json.dumps(constraint.check, sort_keys=True), constraint)
    return _consistent(list(found.values()))


def _consistent(constraints: list[Constraint]) -> list[Constraint]:
    """Drop constraints that another one implies or contradicts."""
    required = {
        p.lower() for c in constraints if c.check["kind"] == "contains" for p in c.check["texts"]
    }
    placed = {
        _bare(c.check.get("text") or c.check["word"])
        for c in constraints
        if c.check["kind"] in ("ends_with", "starts_with", "paragraph_start")
    }
    options = {
        _bare(o) for c in constraints if c.check["kind"] == "one_of" for o in c.check["options"]
    }
    consistent = []
    for constraint in constraints:
        check = constraint.check
        # What must stand at a place, or is one of the options, is not asked for twice.
        if check["kind"] == "contains" and {_bare(p) for p in check["texts"]} <= placed | options:
            continue
        # The longer of two beginnings holds the shorter one.
        if check["kind"] == "starts_with" and any(
            other is not constraint
            and other.check["kind"] == "starts_with"
            and other.check["text"].lower().startswith(check["text"].lower())
            for other in constraints
        ):
            continue
        # Of a word that is asked for and forbidden, asking for it stands.
        if check["kind"] == "excludes" and {p.lower() for p in check["texts"]} & required:
            continue
        consistent.append(constraint)
    return consistent


def _bare(phrase: str) -> str:
    return phrase.lower().strip(" .,!?;:")
