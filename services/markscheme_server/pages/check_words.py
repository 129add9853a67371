"""Say what a check asks of a response, in a sentence. Pure."""

from collections.abc import Sequence

from markscheme import checks
from markscheme.schema import Check
from markscheme.vocabulary import View
from markscheme_server.pages.words import percent, plural
from markscheme_server.rules.languages import NAMES

SHOWN_PHRASES, SHOWN_CHARACTERS = 8, 80
"""Phrases of a check that a sentence quotes, and characters of each: a check may have 64 of 2,000.
"""
LANGUAGES = {code: name.title() for name, code in NAMES.items()}
_COUNTED = {
    "sentences": ("sentence", "sentences"),
    "bullets": ("bullet point", "bullet points"),
    "highlights": ("highlighted passage", "highlighted passages"),
    "placeholders": ("placeholder", "placeholders"),
    "capital_words": ("word in capitals", "words in capitals"),
    "commas": ("comma", "commas"),
    "paragraphs": ("paragraph", "paragraphs"),
    "starred_parts": ("part divided by ***", "parts divided by ***"),
    "responses": ("answer divided by ******", "answers divided by ******"),
}
_VIEWS: dict[View | None, str] = {
    "assistant": " in all that the assistant says",
    "full": " in all that is said, tools included",
}


def sentence(check: Check) -> str:
    """Return what a check asks, as in "The response has at most 3 words and is in English"."""
    parts = check.checks if isinstance(check, checks.AllOf) else [check]
    listed = _listed([_words(part) for part in parts], "and")
    return f"The response {listed}{_VIEWS.get(check.view, '')}."


def _words(check: Check) -> str:
    """Return what one check asks, as a verb with its objects."""
    match check:
        case checks.MinWords():
            return f"has at least {plural(check.value, 'word')}"
        case checks.MaxWords():
            return f"has at most {plural(check.value, 'word')}"
        case checks.Count():
            each = f" for each {plural(check.per_words, 'word')}" if check.per_words else ""
            return f"has {_amount(check.min, check.max, *_COUNTED[check.of])}{each}"
        case checks.Occurrences():
            return f"has {_quoted(check.text)} {_amount(check.min, check.max, 'time', 'times')}"
        case checks.LetterCount():
            times = _amount(check.min, check.max, "time", "times")
            return f"has the letter {_quoted(check.letter)} {times}"
        case checks.Contains():
            return f"has {_phrases(check.texts, 'or' if check.match == 'any' else 'and')}"
        case checks.Excludes():
            return f"does not have {_phrases(check.texts, 'or')}"
        case checks.Lowercase():
            return _cased(check.share, "lower case")
        case checks.Uppercase():
            return _cased(check.share, "capitals")
        case checks.Quoted():
            return "is in double quotation marks"
        case checks.Title():
            return "has a title in <<double angular brackets>>"
        case checks.JsonValid():
            return "is valid JSON"
        case checks.StartsWith():
            return f"begins with {_quoted(check.text)}"
        case checks.EndsWith():
            return f"ends with {_quoted(check.text)}"
        case checks.Postscript():
            return f"has a postscript that begins with {_quoted(check.marker)}"
        case checks.Sections():
            marker = _quoted(check.marker)
            return f"has at least {plural(check.min, 'section')} headed by {marker} and a number"
        case checks.ParagraphStart():
            of = plural(check.paragraphs, "paragraph")
            word = _quoted(check.word)
            return f"has exactly {of}, of which number {check.paragraph} begins with {word}"
        case checks.OneOf():
            return f"has one of the answers {_phrases(check.options, 'or')}"
        case checks.Language():
            return f"is in {LANGUAGES[check.language]}"
        case checks.Regex():
            case_ = ", ignoring case" if check.ignore_case else ""
            return f"matches the pattern {_quoted(check.pattern)}{case_}"
        case checks.NotEcho():
            return f"takes at most {percent(check.max_share)} of its wording from the prompt"
        case checks.NoRepetition():
            return f"repeats at most {percent(check.max_share)} of its own wording"
        case _:
            return _listed([_words(part) for part in check.checks], "and")


def _amount(low: int | None, high: int | None, one: str, many: str) -> str:
    if low is not None and high is not None:
        if low == high:
            return f"exactly {plural(low, one, many)}"
        return f"{low:,} to {plural(high, one, many)}"
    if low is not None:
        return f"at least {plural(low, one, many)}"
    return f"at most {plural(high or 0, one, many)}"


def _cased(share: float, letters: str) -> str:
    if share == 1.0:
        return f"is all in {letters}"
    return f"has at least {percent(share)} of its letters in {letters}"


def _phrases(texts: Sequence[str], last: str) -> str:
    shown = [_quoted(text) for text in texts[:SHOWN_PHRASES]]
    more = len(texts) - len(shown)
    return _listed([*shown, f"{more} more"] if more else shown, last)


def _quoted(text: str) -> str:
    cut = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return f"“{cut}”"


def _listed(parts: Sequence[str], last: str) -> str:
    *first, end = parts
    return f"{', '.join(first)} {last} {end}" if first else end
