"""Easier checks for a constraint, so that a weak student's group does not score zero throughout.

Each easier check is a criterion of its own, and the points of the constraint are split between
them. The constraint implies its easier checks (except for a bare JSON scalar), so that they never
reward what the prompt did not ask for.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from markscheme_server.rules.constraint import in_words, quoted_list

Arguments = Mapping[str, Any]
MAX_PATTERN_CHARACTERS = 1000
MIN_START_WORDS = 3
"""Words of the easiest check for "begin with this text"."""


@dataclass(frozen=True, slots=True)
class EasierCheck:
    """An easier form of a check, and its statement."""

    check: Arguments
    text: str


def easier_checks(check: Arguments) -> list[EasierCheck]:
    """Return at most two easier forms of a check, the harder one first; some kinds have none."""
    build = _EASIER_CHECKS.get(check["kind"])
    return build(check)[:2] if build else []


_NOUNS = {
    "sentences": "sentence",
    "bullets": "bullet point",
    "highlights": "passage highlighted with asterisks",
    "placeholders": "placeholder in square brackets",
    "capital_words": "word in all capital letters",
    "paragraphs": "paragraph",
    "commas": "comma",
}


def _count(check: Arguments) -> list[EasierCheck]:
    of, low, high = check["of"], check.get("min"), check.get("max")
    if of == "commas" and high == 0:
        return [
            EasierCheck(
                {"kind": "count", "of": of, "max": 2}, "The response has at most 2 commas."
            ),
            EasierCheck(
                {"kind": "count", "of": of, "max": 1, "per_words": 20},
                "The response has at most 1 comma in 20 words.",
            ),
        ]
    if of in ("starred_parts", "responses"):
        divider = "***" if of == "starred_parts" else "******"
        return [
            EasierCheck(
                {"kind": "contains", "texts": [divider]},
                f"The response contains the divider {divider}.",
            )
        ]
    noun = _NOUNS[of]
    plural = (
        re.sub(r"^(\w+)", r"\1s", noun)
        if " " in noun and not noun.startswith("bullet")
        else f"{noun}s"
    )
    easier = []
    if low:
        # Half of the minimum (rounded up), then one. A maximum is relaxed along with it.
        limits = sorted({n for n in (-(-low // 2), 1) if n < low}, reverse=True)
        easier = [(n, None if high is None else max(high, 2 * low)) for n in limits]
    elif high:
        easier = [(None, 2 * high)]
    return [
        EasierCheck(
            {"kind": "count", "of": of, **_sides(a, b)},
            f"The response has {in_words(a, b, noun, plural)}.",
        )
        for a, b in easier
    ]


def _sides(low: int | None, high: int | None) -> dict[str, int]:
    return {side: n for side, n in (("min", low), ("max", high)) if n is not None}


def _min_words(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck({"kind": "min_words", "value": n}, f"The response has at least {n} words.")
        for n in (check["value"] // 2, check["value"] // 4)
        if n >= 10
    ]


def _max_words(check: Arguments) -> list[EasierCheck]:
    n = check["value"] * 3 // 2
    return [EasierCheck({"kind": "max_words", "value": n}, f"The response has at most {n} words.")]


def _occurrences(check: Arguments) -> list[EasierCheck]:
    text, low, high = check["text"], check.get("min"), check.get("max")
    easier: list[tuple[int | None, int | None]] = []
    if low:
        easier = [(n, None) for n in dict.fromkeys((-(-low // 2), 1)) if n < low]
    elif high is not None:
        easier = [(None, high + 2)]
    return [
        EasierCheck(
            {"kind": "occurrences", "text": text, **_sides(a, b)},
            f"“{text}” occurs {in_words(a, b, 'time')} in the response.",
        )
        for a, b in easier
    ]


def _letter_count(check: Arguments) -> list[EasierCheck]:
    letter, low, high = check["letter"], check.get("min"), check.get("max")
    easier = (
        [(-(-low // 2), None)]
        if low and low > 1
        else []
        if high is None
        else [(None, 2 * high + 3)]
    )
    return [
        EasierCheck(
            {"kind": "letter_count", "letter": letter, **_sides(a, b)},
            f"The letter “{letter}” occurs {in_words(a, b, 'time')} in the response.",
        )
        for a, b in easier
    ]


def _contains(check: Arguments) -> list[EasierCheck]:
    if len(check["texts"]) < 2 or check.get("match") == "any":
        return []
    return [
        EasierCheck(
            {**check, "match": "any"}, f"The response contains {quoted_list(check['texts'], 'or')}."
        )
    ]


def _uppercase(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "uppercase", "share": share},
            f"At least {share:.0%} of the letters are upper case.",
        )
        for share in (0.5, 0.1)
    ]


def _lowercase(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "lowercase", "share": share},
            f"At least {share:.1%} of the letters are lower case.",
        )
        for share in (0.99, 0.975)
    ]


def _quoted(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "starts_with", "text": '"'}, "The response opens with a double quotation mark."
        ),
        EasierCheck(
            {"kind": "contains", "texts": ['"']}, "The response has a double quotation mark."
        ),
    ]


def _title(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "contains", "texts": ["<<"]}, "The response has double angular brackets."
        )
    ]


def _json_valid(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "regex", "pattern": r"^\s*(?:```(?i:json)?\s*)?[{\[]"},
            "The response opens with a JSON object or array.",
        )
    ]


def _starts_with(check: Arguments) -> list[EasierCheck]:
    words = check["text"].split()
    sizes = [n for n in (len(words) // 2, MIN_START_WORDS) if MIN_START_WORDS <= n < len(words)]
    starts = dict.fromkeys(_leading(check["text"], n) for n in sizes)
    return [
        EasierCheck({"kind": "starts_with", "text": start}, f"The response begins with “{start}”.")
        for start in starts
    ]


def _leading(text: str, size: int) -> str:
    """Return the first ``size`` words of a text with their spacing."""
    ends = [m.end() for m in re.finditer(r"\S+", text)]
    return text[: ends[size - 1]].strip()


def _ends_with(check: Arguments) -> list[EasierCheck]:
    return [
        EasierCheck(
            {"kind": "contains", "texts": [check["text"]]},
            f"The response contains “{check['text']}”.",
        )
    ]


def _sections(check: Arguments) -> list[EasierCheck]:
    marker = check["marker"]
    return [
        EasierCheck(
            {"kind": "sections", "marker": marker, "min": n},
            f"The response has {in_words(n, None, 'section')} headed “{marker}” and a number.",
        )
        for n in dict.fromkeys((-(-check["min"] // 2), 1))
        if n < check["min"]
    ]


def _paragraph_start(check: Arguments) -> list[EasierCheck]:
    n = check["paragraphs"]
    return [
        EasierCheck(
            {"kind": "count", "of": "paragraphs", "min": n, "max": n},
            f"The response has {in_words(n, n, 'paragraph')}.",
        ),
        EasierCheck(
            {"kind": "contains", "texts": [check["word"]]},
            f"The response contains “{check['word']}”.",
        ),
    ]


def _one_of(check: Arguments) -> list[EasierCheck]:
    """Ask for a word that distinguishes the options, then for the words that all begin with."""
    options = [re.findall(r"\w+", option.lower()) for option in check["options"]]
    shared = set.intersection(*map(set, options)) if options else set()
    distinct = dict.fromkeys(word for option in options for word in option if word not in shared)
    if not distinct:
        return []
    pattern = rf"\b(?:{'|'.join(map(re.escape, distinct))})\b"
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return []
    easier = [
        EasierCheck(
            {"kind": "regex", "pattern": pattern, "ignore_case": True},
            f"The response has one of the words {', '.join(distinct)}.",
        )
    ]
    opening = commonprefix(list(check["options"])).rstrip()
    if len(opening.split()) >= 2:
        easier.append(
            EasierCheck(
                {"kind": "contains", "texts": [opening]}, f"The response contains “{opening}”."
            )
        )
    return easier


_EASIER_CHECKS: dict[str, Callable[[Arguments], list[EasierCheck]]] = {
    "count": _count,
    "min_words": _min_words,
    "max_words": _max_words,
    "occurrences": _occurrences,
    "letter_count": _letter_count,
    "contains": _contains,
    "uppercase": _uppercase,
    "lowercase": _lowercase,
    "quoted": _quoted,
    "title": _title,
    "json_valid": _json_valid,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "sections": _sections,
    "paragraph_start": _paragraph_start,
    "one_of": _one_of,
}
