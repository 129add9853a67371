"""Split a prompt into sentences for the parsers, and mask quoted text.

Every sentence has its position, so that a criterion can name its exact source. Quoted text is
masked letter by letter: a number or a "do not" inside quotation marks is no instruction.
"""

import re
from dataclasses import dataclass
from functools import cached_property

READ_CHARACTERS = 12_000
"""Characters of a prompt that are parsed: half of them from its start, half from its end."""
READ_SENTENCES = 120
"""Sentences that are parsed, again from both ends."""
SENTENCE_CHARACTERS = 1_500
"""Longer sentences are cut here, so that no prompt can make the rules slow."""
LEAD_CHARACTERS = 120
MASK = "¤"

_STRAIGHT = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\u00a0": " "})
_QUOTE = re.compile(
    r"\"[^\"\n]{1,600}\"|(?<![\w'])'[^'\n]{1,200}'(?!\w)|``[^`\n]{1,200}''|`[^`\n]{1,200}`"
)
_LONG_QUOTE = re.compile(r"\"[^\"]{1,4000}\"")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])[ \t]+(?=[\w\"'(<*\[])|(?<=[.!?][)\"'])[ \t]+(?=[A-Z0-9(<*\[])|\n+|(?<=;)\s+"
)
_ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|mr|mrs|ms|dr|st)|\bP\.S|\bP\.P\.S|^\s*\d{1,2})\.$", re.IGNORECASE
)

_CUE = re.compile(
    r"\b(?:must|should|shall|need|needs|have to|has to|had better|ought|please|make sure|ensure"
    r"|be sure|do not|don't|"
    r"never|without|avoid|refrain|only|wants?|i'd like|would like|require|required|requires"
    r"|allowed|permitted|"
    r"exactly|entire|your (?:\w+ ){0,2}(?:answer|response|reply|output|text))\b|"
    r"(?:^|[,:;(]|\b(?:and|then|but|also|first|so|or)\b)\s*(?:\d[.)]\s*|[-*]\s*)?"
    r"(?:write|give|use|add|include|put|make|answer|reply|respond|begin|start|end|finish|close"
    r"|conclude|wrap|enclose|"
    r"keep|mention|say|tell|explain|describe|list|create|compose|generate|draft|provide|return"
    r"|work|repeat|copy|quote|"
    r"separate|highlight|emphasi[sz]e|limit|stay|leave|omit|exclude|format|output|type|print|set"
    r"|open|pick|choose|"
    r"summari[sz]e|suggest|announce|invent|prepare|compare|offer|discuss|review|steer"
    r"|capitali[sz]e|elaborate|mark|"
    r"present|produce|organi[sz]e|divide|split|structure|express|speak|design|come up|brainstorm"
    r"|rewrite|shout)\b",
    re.IGNORECASE,
)
_REPORT = re.compile(
    r"\b(?:was|were|had|did|said|says|told|wrote|sold|used to|means?|meant|called|scored|got)\b|"
    r"^\s*(?:what|why|who|whose|which|when|where|is|are|do|does|did|was|were|has|have)\b[^?]*\?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quote:
    """A quotation; ``start`` and ``end`` are its positions in the sentence, with the marks."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """One sentence of a prompt, which begins at ``start``.

    ``source`` is the original, ``text`` has straight quotes, ``masked`` has masked quotations.
    """

    source: str
    text: str
    masked: str
    start: int

    @cached_property
    def quotes(self) -> tuple[Quote, ...]:
        """The quotations of the sentence."""
        found = ((m.group().strip("\"'`").strip(), m) for m in _QUOTE.finditer(self.text))
        return tuple(Quote(text, m.start(), m.end()) for text, m in found if text)

    @cached_property
    def is_instruction(self) -> bool:
        """Whether it can be an instruction, rather than a report or a question."""
        return bool(_CUE.search(self.masked)) or not _REPORT.search(self.masked)

    def before(self, position: int) -> str:
        """Return the masked text before a position, `LEAD_CHARACTERS` of it."""
        return self.masked[max(0, position - LEAD_CHARACTERS) : position]

    def quotes_after(self, position: int) -> list[Quote]:
        """Return the quotations from a position on."""
        return [quote for quote in self.quotes if quote.start >= position]


@dataclass(frozen=True)
class PromptText:
    """A prompt, its text with straight quotes, and its sentences."""

    source: str
    text: str
    sentences: tuple[Sentence, ...]


def parse_prompt(prompt: str) -> PromptText:
    """Split a prompt into sentences; of a very long one only its start and end."""
    if len(prompt) > READ_CHARACTERS:
        prompt = prompt[: READ_CHARACTERS // 2] + "\n" + prompt[-READ_CHARACTERS // 2 :]
    text = prompt.translate(_STRAIGHT)
    masked = _QUOTE.sub(_mask, text)
    masked = _LONG_QUOTE.sub(_mask, masked)
    sentences = []
    start = 0
    for end in [
        *(m.end() for m in _SENTENCE_END.finditer(masked) if not _joins(masked, start, m.start())),
        len(text),
    ]:
        piece = text[start:end].rstrip()
        lead = len(piece) - len(piece.lstrip())
        if piece.strip():
            first = start + lead
            last = min(start + len(piece), first + SENTENCE_CHARACTERS)
            sentences.append(
                Sentence(prompt[first:last], text[first:last], masked[first:last], first)
            )
        start = end
    if len(sentences) > READ_SENTENCES:
        sentences = sentences[: READ_SENTENCES // 2] + sentences[-READ_SENTENCES // 2 :]
    return PromptText(prompt, text, tuple(sentences))


def _joins(masked: str, start: int, end: int) -> bool:
    return bool(_ABBREVIATED.search(masked[max(start, end - 12) : end]))


def _mask(match: re.Match[str]) -> str:
    inner = match.group()
    # The last punctuation stays, so that a full stop inside the quotation can end the sentence.
    stop = inner[-2] if inner[-2] in ".!?" else MASK
    return inner[0] + MASK * (len(inner) - 3) + stop + inner[-1] if len(inner) > 2 else inner
