"""What any response must be before it can earn anything: long enough, not the prompt again, not one thing over and over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markscheme_server.judge.builtin.candidate import Candidate
from markscheme_server.judge.builtin.measures import words

LEAST_WORDS = 10
MOST_ECHO = 0.5
MOST_REPETITION = 0.3


@dataclass(frozen=True, slots=True)
class Gate:
    """Checks that every criterion carries, and how they are put in its statement."""

    checks: tuple[Mapping[str, Any], ...]
    text: str


def gate_for(prompt: str, candidates: Sequence[Candidate]) -> Gate:
    """The gate of one prompt, softened where the prompt itself asks for something short or for its own words."""
    kinds = {c.check["kind"] for c in candidates}
    least = _least_words(candidates)
    checks: list[Mapping[str, Any]] = [{"kind": "min_words", "value": least}]
    parts = [f"has {least} words or more"]
    reference = _without_phrases(prompt, candidates)
    if "starts_with" not in kinds and len(words(reference)) >= 3:
        checks.append({"kind": "not_echo", "text": reference, "max_share": MOST_ECHO})
        parts.append("is not the prompt again")
    if not any(c.check["kind"] == "occurrences" and c.check.get("min", 0) > 5 for c in candidates):
        checks.append({"kind": "no_repetition", "max_share": MOST_REPETITION})
        parts.append("does not repeat itself")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Gate(tuple(checks), f"Counts only for a response that {listed}.")


def _least_words(candidates: Sequence[Candidate]) -> int:
    """Ten words, or half of what a cap on words leaves, or as many as the shortest option has."""
    least = LEAST_WORDS
    for candidate in candidates:
        check = candidate.check
        if check["kind"] == "max_words":
            least = min(least, max(1, check["value"] // 2))
        elif check["kind"] == "one_of":
            least = min(least, *(max(1, len(words(option))) for option in check["options"]))
    return least


def _without_phrases(prompt: str, candidates: Sequence[Candidate]) -> str:
    """The prompt without the phrases that it asks to be used."""
    for candidate in candidates:
        for phrase in (*candidate.check.get("options", ()), candidate.check.get("text", "")):
            if phrase and candidate.check["kind"] in ("one_of", "ends_with"):
                prompt = prompt.replace(phrase, " ¶ ")
    return prompt
