"""Reading a prompt's stated constraints by rules: each becomes a check, a sentence, and the span it came from.

Rules, not a model: what they do not know they do not see, and they never guess.
"""

import json

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.parse_counts import read_counts
from markscheme_server.rules.parse_format import read_form
from markscheme_server.rules.parse_keywords import read_words
from markscheme_server.rules.parse_repeat import read_repeat
from markscheme_server.rules.prompt import read_prompt

__all__ = ["Constraint", "read_constraints"]


def read_constraints(prompt: str) -> list[Constraint]:
    """The constraints of a prompt in the order of their families, each check once, contradictions left out."""
    text = read_prompt(prompt)
    found: dict[str, Constraint] = {}
    for family in (read_form, read_counts, read_words, read_repeat):
        for candidate in family(text):
            found.setdefault(json.dumps(candidate.check, sort_keys=True), candidate)
    return _consistent(list(found.values()))


def _consistent(candidates: list[Constraint]) -> list[Constraint]:
    """Drop what another candidate says better or rules out."""
    required = {
        p.lower() for c in candidates if c.check["kind"] == "contains" for p in c.check["texts"]
    }
    placed = {
        _bare(c.check.get("text") or c.check["word"])
        for c in candidates
        if c.check["kind"] in ("ends_with", "starts_with", "paragraph_start")
    }
    options = {
        _bare(o) for c in candidates if c.check["kind"] == "one_of" for o in c.check["options"]
    }
    kept = []
    for candidate in candidates:
        check = candidate.check
        if check["kind"] == "contains" and {_bare(p) for p in check["texts"]} <= placed | options:
            continue
        if check["kind"] == "starts_with" and any(
            other is not candidate
            and other.check["kind"] == "starts_with"
            and other.check["text"].lower().startswith(check["text"].lower())
            for other in candidates
        ):
            continue
        if check["kind"] == "excludes" and {p.lower() for p in check["texts"]} & required:
            continue
        kept.append(candidate)
    return kept


def _bare(phrase: str) -> str:
    return phrase.lower().strip(" .,!?;:")
