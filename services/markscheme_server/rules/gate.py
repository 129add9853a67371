"""The gate: conditions for any reward. A response is long enough, no echo and not repetitive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.languages import language_of
from markscheme_server.rules.text_metrics import words

MIN_WORDS = 5
MAX_ECHO = 0.7
"""Maximum share of the wording that is the prompt's."""
MAX_ECHO_WITH_REPEAT = 0.9
MAX_ECHO_WITH_OPTIONS = 0.3
MAX_REPETITION = 0.6
REFERENCE_CHARACTERS = 4_000
"""Characters of the prompt that a response is compared with."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Checks that are added to a criterion, and their wording in its statement."""

    checks: tuple[Mapping[str, Any], ...]
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentence that is added to a criterion."""
        *first, last = self.parts
        conditions = f"{', '.join(first)} and {last}" if first else last
        return f"Counts only for a response that {conditions}."

    def in_english(self) -> "Gate":
        """Return this gate with the language English added, against strings of non-words."""
        return replace(
            self,
            checks=(*self.checks, {"kind": "language", "language": "en"}),
            parts=(*self.parts, "is in English"),
        )


def gate_for(
    prompt: str, constraints: Sequence[Constraint], teachers: Sequence[str], word_limit: int | None
) -> Gate:
    """Return the gate of one prompt, relaxed where the prompt asks for few words or for its own.

    ``word_limit`` is the most words that a rollout can have, where that is known.
    """
    min_words = _min_words(constraints, teachers)
    checks: list[Mapping[str, Any]] = [{"kind": "min_words", "value": min_words}]
    parts = [f"has at least {min_words} {'word' if min_words == 1 else 'words'}"]
    reference = _without_phrases(prompt[:REFERENCE_CHARACTERS], constraints)
    max_echo = _max_echo(constraints, word_limit)
    if max_echo is not None and len(words(reference)) >= 3:
        checks.append({"kind": "not_echo", "text": reference, "max_share": max_echo})
        parts.append("is not the prompt again")
    # A prompt that asks for a word many times asks for repetition.
    if not any(c.check["kind"] == "occurrences" and c.check.get("min", 0) > 5 for c in constraints):
        checks.append({"kind": "no_repetition", "max_share": MAX_REPETITION})
        parts.append("does not repeat itself")
    return Gate(tuple(checks), tuple(parts))


def _min_words(constraints: Sequence[Constraint], teachers: Sequence[str]) -> int:
    """Return the minimum length in words: 5, or less where a valid answer may be shorter.

    That is the length of the shortest teacher response, half of a cap on words, or the length of
    the shortest option.
    """
    least = min([MIN_WORDS, *(max(1, len(words(text))) for text in teachers)])
    for constraint in constraints:
        check = constraint.check
        if check["kind"] == "max_words":
            least = min(least, max(1, check["value"] // 2))
        elif check["kind"] == "one_of":
            least = min(least, *(max(1, len(words(option))) for option in check["options"]))
    return least


def expects_english(
    prompt: str, constraints: Sequence[Constraint], teachers: Sequence[str]
) -> bool:
    """Return whether English can be expected: the prompt and all teacher responses are English."""
    names_language = any(c.check["kind"] == "language" for c in constraints)
    return (
        bool(teachers)
        and not names_language
        and all(language_of(text) == "en" for text in (prompt, *teachers))
    )


def _max_echo(constraints: Sequence[Constraint], word_limit: int | None) -> float | None:
    """Return the share that may be the prompt's wording.

    ``None`` where rollouts are too short to go beyond a text that they must repeat.
    """
    repeated = max(
        (len(words(c.check["text"])) for c in constraints if c.check["kind"] == "starts_with"),
        default=0,
    )
    if repeated:
        too_short = word_limit is not None and repeated + MIN_WORDS > word_limit
        return None if too_short else MAX_ECHO_WITH_REPEAT
    has_options = any(c.check["kind"] == "one_of" for c in constraints)
    return MAX_ECHO_WITH_OPTIONS if has_options else MAX_ECHO


def _without_phrases(prompt: str, constraints: Sequence[Constraint]) -> str:
    """Replace the phrases that the prompt asks for by a mark."""
    for constraint in constraints:
        for phrase in (*constraint.check.get("options", ()), constraint.check.get("text", "")):
            if phrase and constraint.check["kind"] in ("one_of", "ends_with"):
                prompt = prompt.replace(phrase, " ¶ ")
    return prompt
