"""Reading a prompt's stated constraints by rules: each becomes a check, a sentence, and the span it came from.

Rules, not a model: what they do not know they do not see, and they never guess.
"""

import json

from markscheme_server.judge.builtin.candidate import Candidate
from markscheme_server.judge.builtin.prompt import read_prompt
from markscheme_server.judge.builtin.reader_counts import read_counts
from markscheme_server.judge.builtin.reader_form import read_form
from markscheme_server.judge.builtin.reader_repeat import read_repeat
from markscheme_server.judge.builtin.reader_words import read_words

__all__ = ["Candidate", "read_constraints"]


def read_constraints(prompt: str) -> list[Candidate]:
    """The constraints of a prompt in the order of their families, each check once, contradictions left out."""
    text = read_prompt(prompt)
    found: dict[str, Candidate] = {}
    for family in (read_form, read_counts, read_words, read_repeat):
        for candidate in family(text):
            found.setdefault(json.dumps(candidate.check, sort_keys=True), candidate)
    return _consistent(list(found.values()))


def _consistent(candidates: list[Candidate]) -> list[Candidate]:
    """Drop what another candidate says better or rules out."""
    kinds = {c.check["kind"] for c in candidates}
    required = {p.lower() for c in candidates if c.check["kind"] == "contains" for p in c.check["texts"]}
    endings = {c.check["text"].lower() for c in candidates if c.check["kind"] in ("ends_with", "starts_with")}
    kept = []
    for candidate in candidates:
        check = candidate.check
        if check["kind"] == "contains" and {p.lower() for p in check["texts"]} <= endings:
            continue
        if check["kind"] == "excludes" and {p.lower() for p in check["texts"]} & required:
            continue
        if check["kind"] == "contains" and "one_of" in kinds and any(
                set(check["texts"]) <= set(c.check["options"]) for c in candidates if c.check["kind"] == "one_of"):
            continue
        kept.append(candidate)
    return kept
