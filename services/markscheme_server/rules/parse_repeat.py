"""Parse a request to repeat the prompt, or a part of it, before the answer."""

import re
from collections.abc import Iterator

from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.prompt import PromptText, Sentence

_REPEAT = re.compile(
    r"\b(?:repeat|repleat|copy|restate|quote|reproduce)\b[^.;]{0,60}\b(?:line|request|prompt"
    r"|question|sentence|instructions?|it|text|"
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
    r"\b(?:repeat|repleat|repeating|copy|restate|quote|reproduce|before replying)\b|\b(?:do not"
    r"|don't) (?:say|"
    r"change|output|add|include)\b|"
    r"\bword for word\b|\bas it is\b|^\s*\d[.)]|\bthen (?:give|answer|reply|respond)\b",
    re.IGNORECASE,
)


def parse_repeat(prompt: PromptText) -> Iterator[Constraint]:
    """Yield at most one constraint: the response begins with the text to repeat."""
    for index, sentence in enumerate(prompt.sentences):
        if _REPEAT.search(sentence.masked) and _FIRST.search(
            sentence.masked + _after(prompt, index)
        ):
            target = _target(prompt, index)
            if target:
                yield Constraint(
                    {"kind": "starts_with", "text": target[:2000]},
                    f"The response begins by repeating this, unchanged: “{target[:1500]}”",
                    sentence.source,
                )
            return


def _after(prompt: PromptText, index: int) -> str:
    return " ".join(s.masked for s in prompt.sentences[index + 1 : index + 3])


def _target(prompt: PromptText, index: int) -> str:
    """Return the text to repeat: all before the sentences about repeating, or all after them."""
    # Skip the neighbouring sentences that are about the repetition itself.
    last = index
    while last + 1 < len(prompt.sentences) and _ABOUT_REPEATING.search(
        prompt.sentences[last + 1].masked
    ):
        last += 1
    first = index
    while first > 0 and _ABOUT_REPEATING.search(prompt.sentences[first - 1].masked):
        first -= 1
    before = prompt.source[: prompt.sentences[first].start].strip()
    after = prompt.source[_end(prompt.sentences[last]) :].strip()
    said = prompt.sentences[index].masked.lower()
    if "above" in said:
        return before
    if "below" in said or "following" in said:
        return after
    return after or before


def _end(sentence: Sentence) -> int:
    return sentence.start + len(sentence.source)
