"""Reading a request to repeat the prompt, or a part of it, before the answer: which text is to be repeated."""

import re
from collections.abc import Iterator

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.prompt import PromptText, Sentence

_REPEAT = re.compile(
    r"\b(?:repeat|repleat|copy|restate|quote|reproduce)\b[^.;]{0,60}\b(?:line|request|prompt|question|sentence|instructions?|it|text|"
    r"above|below|task|statement|message|paragraph)\b",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"\b(?:first|before|then|verbatim|word for word|without chang|exactly|at the (?:very )?(?:top|"
    r"start|begin)|"
    r"as it is|do not change|itself)",
    re.IGNORECASE,
)
_ABOUT_REPEATING = re.compile(
    r"\b(?:repeat|repleat|repeating|copy|restate|quote|reproduce|before replying)\b|\b(?:do not|don't) (?:say|"
    r"change|output|add|include)\b|"
    r"\bword for word\b|\bas it is\b|^\s*\d[.)]|\bthen (?:give|answer|reply|respond)\b",
    re.IGNORECASE,
)


def read_repeat(prompt: PromptText) -> Iterator[Constraint]:
    """At most one constraint: the response begins with the named text."""
    for place, sentence in enumerate(prompt.sentences):
        if _REPEAT.search(sentence.masked) and _FIRST.search(
            sentence.masked + _after(prompt, place)
        ):
            target = _target(prompt, place)
            if target:
                yield Constraint(
                    {"kind": "starts_with", "text": target[:2000]},
                    f"The response begins by repeating this, unchanged: “{target[:1500]}”",
                    sentence.source,
                )
            return


def _after(prompt: PromptText, place: int) -> str:
    return " ".join(s.masked for s in prompt.sentences[place + 1 : place + 3])


def _target(prompt: PromptText, place: int) -> str:
    """What is to be repeated: all that stands before the talk about repeating, or all that follows it."""
    last = place
    while last + 1 < len(prompt.sentences) and _ABOUT_REPEATING.search(
        prompt.sentences[last + 1].masked
    ):
        last += 1
    first = place
    while first > 0 and _ABOUT_REPEATING.search(prompt.sentences[first - 1].masked):
        first -= 1
    before = prompt.source[: prompt.sentences[first].start].strip()
    after = prompt.source[_end(prompt.sentences[last]) :].strip()
    said = prompt.sentences[place].masked.lower()
    if "above" in said:
        return before
    if "below" in said or "following" in said:
        return after
    return after or before


def _end(sentence: Sentence) -> int:
    return sentence.start + len(sentence.source)
