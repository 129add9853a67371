"""What any response must be before it can earn anything: long enough, its own words, not repetitive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.languages import language_of
from markscheme_server.rules.text_metrics import words

LEAST_WORDS = 5
MOST_ECHO = 0.7
MOST_ECHO_BESIDE_REPEAT = 0.9
MOST_ECHO_BESIDE_OPTIONS = 0.3
MOST_REPETITION = 0.6
REFERENCE_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class Gate:
    """Checks that a criterion carries, and how they are put in its statement."""

    checks: tuple[Mapping[str, Any], ...]
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        *most, last = self.parts
        listed = f"{', '.join(most)} and {last}" if most else last
        return f"Counts only for a response that {listed}."

    def in_english(self) -> "Gate":
        """This gate, and English: what strings of non-words do not pass."""
        return replace(
            self,
            checks=(*self.checks, {"kind": "language", "language": "en"}),
            parts=(*self.parts, "is in English"),
        )


def gate_for(
    prompt: str, candidates: Sequence[Constraint], teachers: Sequence[str], reach: int | None
) -> Gate:
    """The gate of one prompt, softened where the prompt itself asks for something short or for its own words.

    ``reach``: the most words a rollout can get to, where that is known.
    """
    least = _least_words(candidates, teachers)
    checks: list[Mapping[str, Any]] = [{"kind": "min_words", "value": least}]
    parts = [f"has at least {least} {'word' if least == 1 else 'words'}"]
    reference = _without_phrases(prompt[:REFERENCE_CHARACTERS], candidates)
    most = _most_echo(candidates, reach)
    if most is not None and len(words(reference)) >= 3:
        checks.append({"kind": "not_echo", "text": reference, "max_share": most})
        parts.append("is not the prompt again")
    if not any(c.check["kind"] == "occurrences" and c.check.get("min", 0) > 5 for c in candidates):
        checks.append({"kind": "no_repetition", "max_share": MOST_REPETITION})
        parts.append("does not repeat itself")
    return Gate(tuple(checks), tuple(parts))


def _least_words(candidates: Sequence[Constraint], teachers: Sequence[str]) -> int:
    """Five words, or fewer: as the briefest teacher has, half of a cap on words, the shortest of given options."""
    least = min([LEAST_WORDS, *(max(1, len(words(text))) for text in teachers)])
    for candidate in candidates:
        check = candidate.check
        if check["kind"] == "max_words":
            least = min(least, max(1, check["value"] // 2))
        elif check["kind"] == "one_of":
            least = min(least, *(max(1, len(words(option))) for option in check["options"]))
    return least


def expects_english(prompt: str, candidates: Sequence[Constraint], teachers: Sequence[str]) -> bool:
    """Whether English can be expected: the prompt is, and every teacher's answer."""
    asked = any(c.check["kind"] == "language" for c in candidates)
    return (
        bool(teachers)
        and not asked
        and all(language_of(text) == "en" for text in (prompt, *teachers))
    )


def _most_echo(candidates: Sequence[Constraint], reach: int | None) -> float | None:
    """How much may be the prompt's wording; ``None`` where rollouts are too short to get past a text to be repeated."""
    repeated = max(
        (len(words(c.check["text"])) for c in candidates if c.check["kind"] == "starts_with"),
        default=0,
    )
    if repeated:
        return (
            None
            if reach is not None and repeated + LEAST_WORDS > reach
            else MOST_ECHO_BESIDE_REPEAT
        )
    return (
        MOST_ECHO_BESIDE_OPTIONS
        if any(c.check["kind"] == "one_of" for c in candidates)
        else MOST_ECHO
    )


def _without_phrases(prompt: str, candidates: Sequence[Constraint]) -> str:
    """The prompt without the phrases that it asks to be used."""
    for candidate in candidates:
        for phrase in (*candidate.check.get("options", ()), candidate.check.get("text", "")):
            if phrase and candidate.check["kind"] in ("one_of", "ends_with"):
                prompt = prompt.replace(phrase, " ¶ ")
    return prompt
