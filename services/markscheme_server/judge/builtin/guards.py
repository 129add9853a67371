"""What any response must be before it can earn anything: long enough, not the prompt again, not one thing over and over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markscheme_server.judge.builtin.candidate import Candidate
from markscheme_server.judge.builtin.measures import words

LEAST_WORDS = 8
MOST_ECHO = 0.7
MOST_REPETITION = 0.5


@dataclass(frozen=True, slots=True)
class Gate:
    """Checks that every criterion carries, and how they are put in its statement."""

    checks: tuple[Mapping[str, Any], ...]
    text: str


def gate_for(prompt: str, candidates: Sequence[Candidate], teachers: Sequence[str], reach: int | None) -> Gate:
    """The gate of one prompt, softened where the prompt itself asks for something short or for its own words.

    ``reach``: the most words a rollout can get to, where that is known. Who must repeat the prompt has to go on
    after it.
    """
    least = _least_words(candidates, teachers)
    repeated = max((len(words(c.check["text"])) for c in candidates if c.check["kind"] == "starts_with"), default=0)
    if reach is None or repeated + least <= reach:
        least += repeated
    checks: list[Mapping[str, Any]] = [{"kind": "min_words", "value": least}]
    parts = [f"has at least {least} {'word' if least == 1 else 'words'}"]
    reference = _without_phrases(prompt, candidates)
    if not repeated and len(words(reference)) >= 3:
        checks.append({"kind": "not_echo", "text": reference, "max_share": MOST_ECHO})
        parts.append("is not the prompt again")
    if not any(c.check["kind"] == "occurrences" and c.check.get("min", 0) > 5 for c in candidates):
        checks.append({"kind": "no_repetition", "max_share": MOST_REPETITION})
        parts.append("does not repeat itself")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Gate(tuple(checks), f"Counts only for a response that {listed}.")


def _least_words(candidates: Sequence[Candidate], teachers: Sequence[str]) -> int:
    """Eight words, or fewer: as the briefest teacher has, half of a cap on words, the shortest of given options."""
    least = min([LEAST_WORDS, *(max(1, len(words(text))) for text in teachers)])
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
