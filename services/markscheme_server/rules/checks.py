"""Decide a check: given ``{"kind": …}`` and a text, whether it is met, with evidence.

There is one pure function per kind, and one table of them. The wire shape is ``markscheme.checks``;
a test compares the two. Where IFEval's verifier has a rule for the same thing, the decision is the
same. Every function takes any string, raises nothing and is linear in its length.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import re2

from markscheme_server.judge.base import Decision
from markscheme_server.rules import text_metrics
from markscheme_server.rules.languages import language_of
from markscheme_server.rules.patterns import PatternCache

Arguments = Mapping[str, Any]

REGEX_CHARACTERS = 100_000
"""Characters of a text that a regular expression is run on."""
_EVIDENCE_CHARACTERS = 80
_STEPS_PER_S = 1e8
"""Steps of a regular expression that a busy core surely executes per second."""
_CHARACTER_S, _PHRASE_CHARACTER_S = 5e-7, 2e-8
"""Upper bounds of other checks, in seconds: per character, and per character and phrase."""
_patterns = PatternCache()

_COUNTED: dict[str, tuple[Callable[[str], int | None], str]] = {
    "sentences": (text_metrics.sentences, "sentences"),
    "bullets": (text_metrics.bullets, "bullet points"),
    "highlights": (text_metrics.highlights, "highlighted passages"),
    "placeholders": (text_metrics.placeholders, "placeholders"),
    "capital_words": (text_metrics.capital_words, "words in capitals"),
    "commas": (text_metrics.commas, "commas"),
    "paragraphs": (text_metrics.paragraphs, "paragraphs"),
    "starred_parts": (text_metrics.starred_parts, "parts divided by ***"),
    "responses": (text_metrics.responses, "answers divided by ******"),
}

_POSTSCRIPTS = {
    "ps": re.compile(r"p\.\s?s\.", re.IGNORECASE),
    "pps": re.compile(r"p\.\s?p\.\s?s", re.IGNORECASE),
}


def run_check(check: Arguments, text: str) -> Decision:
    """Decide one valid check for one text. Raises ``KeyError`` for a kind that does not exist."""
    return _DECIDERS[check["kind"]](check, text)


def max_seconds(check: Arguments, text: str) -> float:
    """Return an upper bound, in seconds, of the time that a valid check takes for a text."""
    characters = len(text)
    # RE2 works on UTF-8, in which a character has up to four bytes.
    size = characters if text.isascii() else 4 * characters
    match check["kind"]:
        case "all_of":
            return sum(max_seconds(member, text) for member in check["checks"])
        case "regex":
            seen = size * min(1.0, REGEX_CHARACTERS / characters) if characters else 0
            compiled = _patterns.find(check["pattern"], check.get("ignore_case", False))
            return float(seen * compiled.programsize / _STEPS_PER_S)
        case "excludes":
            # Only the phrase counts: the classes around it are one step each.
            return size * sum(16 + len(phrase) for phrase in check["texts"]) / _STEPS_PER_S
    phrases = len(check.get("texts", ())) + len(check.get("options", ()))
    return characters * (_CHARACTER_S + phrases * _PHRASE_CHARACTER_S)


def validate_check(check: Arguments) -> None:
    """Raise ``ValueError`` with a message if a well-formed check cannot be run."""
    for member in check.get("checks", [check]):
        if member["kind"] == "regex":
            try:
                _patterns.find(
                    member["pattern"], member.get("ignore_case", False), allow_large=False
                )
            except re2.error as error:
                raise ValueError(
                    f"the pattern is not a regular expression that RE2 accepts: {_words(error)}"
                ) from None


def kinds() -> frozenset[str]:
    """Return every kind that can be decided."""
    return frozenset(_DECIDERS)


def _words(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _counted(found: int, noun: str) -> str:
    return f"{found} {noun.removesuffix('s') if found == 1 and noun.endswith('s') else noun}"


def _shown(text: str) -> str:
    one_line = " ".join(text.split())
    return (
        one_line
        if len(one_line) <= _EVIDENCE_CHARACTERS
        else one_line[: _EVIDENCE_CHARACTERS - 1] + "…"
    )


def _within(found: float, check: Arguments) -> bool:
    low, high = check.get("min"), check.get("max")
    return (low is None or found >= low) and (high is None or found <= high)


def _min_words(check: Arguments, text: str) -> Decision:
    found = len(text_metrics.words(text))
    return Decision(found >= check["value"], _counted(found, "words"))


def _max_words(check: Arguments, text: str) -> Decision:
    found = len(text_metrics.words(text))
    return Decision(found <= check["value"], _counted(found, "words"))


def _count(check: Arguments, text: str) -> Decision:
    measure, noun = _COUNTED[check["of"]]
    found = measure(text)
    if found is None:
        return Decision(False, "an empty or repeated part")
    per_words = check.get("per_words")
    if per_words is None:
        return Decision(_within(found, check), _counted(found, noun))
    length = len(text_metrics.words(text))
    rate = found * per_words / length if length else 0.0
    return Decision(_within(rate, check), f"{_counted(found, noun)} in {_counted(length, 'words')}")


def _occurrences(check: Arguments, text: str) -> Decision:
    found = text.lower().count(check["text"].lower())
    return Decision(_within(found, check), f"{_counted(found, 'times')} “{_shown(check['text'])}”")


def _letter_count(check: Arguments, text: str) -> Decision:
    found = text.lower().count(check["letter"].lower())
    return Decision(_within(found, check), f"{_counted(found, 'times')} “{check['letter']}”")


def _contains(check: Arguments, text: str) -> Decision:
    lower = text.lower()
    present = [phrase for phrase in check["texts"] if phrase.lower() in lower]
    if check.get("match", "all") == "any":
        return Decision(bool(present), _shown(", ".join(present)) if present else "none of them")
    missing = [phrase for phrase in check["texts"] if phrase not in present]
    return Decision(
        not missing, _shown(f"missing: {', '.join(missing)}" if missing else ", ".join(present))
    )


def _excludes(check: Arguments, text: str) -> Decision:
    seen = _encodable(text)
    for phrase in check["texts"]:
        # RE2: a long phrase of one repeated letter makes a backtracking search quadratic.
        pattern = rf"(?:^|[^\pL\pN_])({re2.escape(_encodable(phrase))})(?:[^\pL\pN_]|$)"
        match = _patterns.find(pattern, True).search(seen)
        if match:
            return Decision(False, _shown(match.group(1)))
    return Decision(True, "none of them")


def _encodable(text: str) -> str:
    """Replace lone surrogates, which RE2 cannot encode as UTF-8, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _lowercase(check: Arguments, text: str) -> Decision:
    return _cased(text, check.get("share", 1.0), upper=False)


def _uppercase(check: Arguments, text: str) -> Decision:
    return _cased(text, check.get("share", 1.0), upper=True)


def _cased(text: str, share: float, *, upper: bool) -> Decision:
    found = text_metrics.upper_share(text)
    if found is None:
        return Decision(False, "no letters")
    found = found if upper else 1.0 - found
    return Decision(
        found >= share, f"{found:.0%} of the letters are {'upper' if upper else 'lower'} case"
    )


def _quoted(check: Arguments, text: str) -> Decision:
    stripped = text.strip()
    met = len(stripped) > 1 and stripped[0] == '"' and stripped[-1] == '"'
    return Decision(met, _shown(f"{stripped[:20]} … {stripped[-20:]}"))


def _title(check: Arguments, text: str) -> Decision:
    for line in text.split("\n"):
        start = line.find("<<")
        end = line.rfind(">>")
        if start >= 0 and start + 2 < end and line[start + 2 : end].strip("<> \t\r"):
            return Decision(True, _shown(line[start : end + 2]))
    return Decision(False, "no <<title>>")


def _json_valid(check: Arguments, text: str) -> Decision:
    body = text.strip()
    # The same fences as in IFEval's verifier, in its order.
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError) as error:
        return Decision(False, _shown(str(error)))
    return Decision(True, "parsed")


def _starts_with(check: Arguments, text: str) -> Decision:
    met = text.strip().lower().startswith(check["text"].strip().lower())
    return Decision(met, _shown(text.strip()[:60]))


def _ends_with(check: Arguments, text: str) -> Decision:
    # IFEval's verifier, too, takes the quotation marks away.
    met = text.strip().strip('"').lower().endswith(check["text"].strip().lower())
    return Decision(met, _shown(text.strip()[-60:]))


def _postscript(check: Arguments, text: str) -> Decision:
    marker = check.get("marker", "P.S.")
    pattern = _POSTSCRIPTS.get(re.sub(r"[^a-z]", "", marker.lower()))
    match = pattern.search(text) if pattern else None
    start = match.start() if match else -1 if pattern else text.lower().find(marker.lower())
    return Decision(start >= 0, _shown(text[start : start + 60]) if start >= 0 else "no postscript")


def _sections(check: Arguments, text: str) -> Decision:
    found = len(re.findall(rf"{re.escape(check['marker'])}\s?\d+", text))
    return Decision(found >= check["min"], _counted(found, "sections"))


def _paragraph_start(check: Arguments, text: str) -> Decision:
    blocks = text.split("\n\n")
    found = sum(1 for block in blocks if block.strip())
    if found != check["paragraphs"] or check["paragraph"] > found:
        return Decision(False, _counted(found, "paragraphs"))
    first = (blocks[check["paragraph"] - 1].split() or [""])[0]
    word = re.split(r"[.,?!'\"]", first.lstrip("'").lstrip('"'))[0]
    return Decision(word.lower() == check["word"].lower(), _shown(first))


def _one_of(check: Arguments, text: str) -> Decision:
    for option in check["options"]:
        if option in text:
            return Decision(True, _shown(option))
    return Decision(False, "none of the options")


def _language(check: Arguments, text: str) -> Decision:
    found = language_of(text)
    return Decision(found == check["language"], f"language: {found or 'unclear'}")


def _regex(check: Arguments, text: str) -> Decision:
    compiled = _patterns.find(check["pattern"], check.get("ignore_case", False))
    match = compiled.search(_encodable(text[:REGEX_CHARACTERS]))
    return Decision(match is not None, _shown(match.group()) if match else "no match")


def _not_echo(check: Arguments, text: str) -> Decision:
    triples = text_metrics.triples(text_metrics.words(text.lower())[: text_metrics.READ_WORDS])
    known = _triples_of(check["text"])
    echoed = sum(1 for triple in triples if triple in known)
    share = echoed / len(triples) if triples else 0.0
    return Decision(
        share <= check.get("max_share", 0.5), f"{share:.0%} of the wording is the prompt's"
    )


@lru_cache(maxsize=512)
def _triples_of(text: str) -> frozenset[tuple[str, str, str]]:
    return frozenset(text_metrics.triples(text_metrics.words(text.lower())))


def _no_repetition(check: Arguments, text: str) -> Decision:
    share = text_metrics.repeated_share(text)
    return Decision(
        share <= check.get("max_share", 0.3), f"{share:.0%} of the words repeat themselves"
    )


def _all_of(check: Arguments, text: str) -> Decision:
    decision = Decision(True)
    for member in check["checks"]:
        decision = run_check(member, text)
        if not decision.met:
            break
    return decision


_DECIDERS: dict[str, Callable[[Arguments, str], Decision]] = {
    "min_words": _min_words,
    "max_words": _max_words,
    "count": _count,
    "occurrences": _occurrences,
    "letter_count": _letter_count,
    "contains": _contains,
    "excludes": _excludes,
    "lowercase": _lowercase,
    "uppercase": _uppercase,
    "quoted": _quoted,
    "title": _title,
    "json_valid": _json_valid,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "postscript": _postscript,
    "sections": _sections,
    "paragraph_start": _paragraph_start,
    "one_of": _one_of,
    "language": _language,
    "regex": _regex,
    "not_echo": _not_echo,
    "no_repetition": _no_repetition,
    "all_of": _all_of,
}
