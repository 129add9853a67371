"""Parse amounts and bounds in prose: "at least three", "40 to 60", "no more than 5", "300+"."""

import re
from dataclasses import dataclass

_UNITS_TEXT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = _UNITS_TEXT.split()
_TENS = dict(zip(_TENS_TEXT.split(), range(20, 100, 10), strict=True))
_WORDS: dict[str, int] = (
    {word: value for value, word in enumerate(_UNITS)}
    | _TENS
    | {
        "no": 0,
        "a": 1,
        "an": 1,
        "single": 1,
        "a single": 1,
        "couple": 2,
        "a couple of": 2,
        "dozen": 12,
        "a dozen": 12,
        "hundred": 100,
        "a hundred": 100,
        "one hundred": 100,
        "thousand": 1000,
        "a thousand": 1000,
        "one thousand": 1000,
        **{f"{unit} hundred": value * 100 for value, unit in enumerate(_UNITS[2:10], 2)},
        **{
            f"{tens}{dash}{unit}": base + value
            for tens, base in _TENS.items()
            for dash in " -"
            for value, unit in enumerate(_UNITS[1:10], 1)
        },
    }
)
# Otherwise "twenty" would match the beginning of "twenty-one".
_LONGEST_FIRST = sorted(
    (w for w in _WORDS if w not in ("no", "a", "an", "single", "couple", "dozen")),
    key=len,
    reverse=True,
)
NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,6}"
    rf"|(?:{'|'.join(map(re.escape, _LONGEST_FIRST))}|a single)\b)"
)
"""A pattern for an amount, without groups."""

_MOST = r"(?:very )?(?:most|maximum|max)"
BEFORE: tuple[tuple[str, str], ...] = (
    (
        "least",
        r"at (?:the (?:very )?)?least|no (?:fewer|less) than|not (?:fewer|less) than|(?:a |the "
        r")?minimum(?: of)?|"
        r"(?:a )?min(?: of)?|upwards of|not under|not below",
    ),
    (
        "most",
        rf"at (?:the )?{_MOST}|no more than|not more than|no longer than|not longer than|nothing "
        rf"longer than|"
        r"anything longer than|up to|(?:a |the )?maximum(?: of)?|max(?: of)?|not (?:to "
        r")?exceed(?:ing)?|"
        r"(?:must|should|can)? ?n[o']t (?:be )?(?:go )?(?:over|above|beyond|past)|within"
        r"|limit(?:ed)? to|"
        r"not read more than|don't exceed|never (?:exceed|more than)",
    ),
    (
        "over",
        r"(?:strictly )?more than|over|above|exceed(?:ing|s)?|greater than|longer than|beyond",
    ),
    ("under", r"(?:strictly )?(?:less|fewer) than|under|below|shorter than|smaller than"),
    ("exact", r"exactly|precisely|only|just|a total of|no more and no less than"),
    ("about", r"around|about|approximately|roughly|some|circa|nearly|almost"),
)
AFTER: tuple[tuple[str, str], ...] = (
    ("least", r"\+|plus\b|or (?:more|above|over)|(?:at )?minimum|at (?:the )?least|and up"),
    ("most", rf"or (?:less|fewer|under|below)|(?:at (?:the )?)?(?:very )?{_MOST}|tops|no more"),
    ("exact", r"exactly|precisely"),
)
LARGEST = 100_000
"""Larger amounts are not constraints."""
QUANTITY = (
    rf"(?:(?P<before>{'|'.join(f'(?:{p})' for _, p in BEFORE)})\s+(?:the\s+|a total of\s+)?)?"
    rf"(?:between\s+|from\s+|range of\s+)?(?P<number>{NUMBER})"
    rf"(?:\s*(?:-|–|to|and|or)\s*(?P<upto>{NUMBER}))?"
    rf"(?:\s?(?P<after>{'|'.join(f'(?:{p})' for _, p in AFTER)}))?"
)
"""A pattern for a bounded amount with the groups ``before``, ``number``, ``upto`` and ``after``."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """At least ``min`` and at most ``max``.

    ``kind`` is how the prompt puts it; ``bare``: an amount alone.
    """

    min: int | None
    max: int | None
    kind: str

    def as_arguments(self) -> dict[str, int]:
        """Return the bounds as arguments of a check."""
        return {
            side: value
            for side, value in (("min", self.min), ("max", self.max))
            if value is not None
        }


def value_of(number: str) -> int:
    """Return the amount that `NUMBER` matched."""
    lower = number.lower()
    return _WORDS[lower] if lower in _WORDS else int(lower.replace(",", ""))


def parse_bounds(match: re.Match[str], tail: str = "") -> Bounds | None:
    """Return the bounds of a `QUANTITY` match.

    ``tail`` is the text after the unit, as in "60 words at most".
    """
    low = value_of(match["number"])
    high = value_of(match["upto"]) if match["upto"] else low
    if high < low or high > LARGEST:
        return None
    if match["upto"]:
        return Bounds(low, high, "range")
    kind = _kind_of(match["after"] or "", AFTER) or _kind_of(tail, AFTER, start=True)
    kind = _kind_of(match["before"] or "", BEFORE) or kind or "bare"
    # "Not more than" is a maximum, "not less than" a minimum.
    if (
        match["before"]
        and kind in ("over", "under")
        and re.search(r"\b(?:no|not|n't|nor)\s*$", _left(match))
    ):
        kind = {"over": "most", "under": "least"}[kind]
    return {
        "least": Bounds(low, None, kind),
        "most": Bounds(None, low, kind),
        "over": Bounds(low + 1, None, kind),
        "under": Bounds(None, max(low - 1, 0), kind),
        "exact": Bounds(low, low, kind),
        "about": Bounds(low * 4 // 5, -(-low * 6 // 5), kind),  # 20 % either way, rounded outwards
        "bare": Bounds(low, low, kind),
    }[kind]


def _left(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - 12) : match.start()]


def _kind_of(text: str, table: tuple[tuple[str, str], ...], *, start: bool = False) -> str | None:
    for kind, pattern in table:
        if re.match(rf"[\s,(]*(?:{pattern})" if start else rf"(?:{pattern})$", text, re.IGNORECASE):
            return kind
    return None
