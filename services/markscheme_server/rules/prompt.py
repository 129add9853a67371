"""A prompt cut into sentences, with quoted text set apart: what the reader's rules run on.

Every piece keeps its place, so that a criterion can name the exact span it was read from. Quoted text is
masked, letter for letter, since a number or a "do not" inside quotation marks asks for nothing.
"""

import re
from dataclasses import dataclass
from functools import cached_property

READ_CHARACTERS = 12_000
"""How much of a prompt is read for constraints: the first half and the last half of it."""
READ_SENTENCES = 120
"""How many of its sentences: again from both ends."""
SENTENCE_CHARACTERS = 1_500
"""Longer sentences are read up to here, so that no prompt can make the rules slow."""
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
    r"\b(?:must|should|shall|need|needs|have to|has to|had better|ought|please|make sure|ensure|be sure|do not|don't|"
    r"never|without|avoid|refrain|only|wants?|i'd like|would like|require|required|requires|allowed|permitted|"
    r"exactly|entire|your (?:\w+ ){0,2}(?:answer|response|reply|output|text))\b|"
    r"(?:^|[,:;(]|\b(?:and|then|but|also|first|so|or)\b)\s*(?:\d[.)]\s*|[-*]\s*)?"
    r"(?:write|give|use|add|include|put|make|answer|reply|respond|begin|start|end|finish|close|conclude|wrap|enclose|"
    r"keep|mention|say|tell|explain|describe|list|create|compose|generate|draft|provide|return|work|repeat|copy|quote|"
    r"separate|highlight|emphasi[sz]e|limit|stay|leave|omit|exclude|format|output|type|print|set|open|pick|choose|"
    r"summari[sz]e|suggest|announce|invent|prepare|compare|offer|discuss|review|steer|capitali[sz]e|elaborate|mark|"
    r"present|produce|organi[sz]e|divide|split|structure|express|speak|design|come up|brainstorm|rewrite|shout)\b",
    re.IGNORECASE,
)
_REPORT = re.compile(
    r"\b(?:was|were|had|did|said|says|told|wrote|sold|used to|means?|meant|called|scored|got)\b|"
    r"^\s*(?:what|why|who|whose|which|when|where|is|are|do|does|did|was|were|has|have)\b[^?]*\?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quote:
    """A quoted piece; ``start`` and ``end`` are places in the sentence, marks included."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """One sentence: ``source`` as the prompt has it, ``text`` with straight quotes, ``masked`` without quotations."""

    source: str
    text: str
    masked: str
    start: int

    @cached_property
    def quotes(self) -> tuple[Quote, ...]:
        return tuple(
            Quote(m.group().strip("\"'`").strip(), m.start(), m.end())
            for m in _QUOTE.finditer(self.text)
            if m.group().strip("\"'` ")
        )

    @cached_property
    def asks(self) -> bool:
        """Whether it can be an instruction rather than a report or a question about something."""
        return bool(_CUE.search(self.masked)) or not _REPORT.search(self.masked)

    def before(self, place: int) -> str:
        """The masked words that lead up to a place, as many as can bear on it."""
        return self.masked[max(0, place - LEAD_CHARACTERS) : place]

    def quotes_after(self, place: int) -> list[Quote]:
        return [quote for quote in self.quotes if quote.start >= place]


@dataclass(frozen=True)
class PromptText:
    """A prompt, straightened, with its sentences."""

    source: str
    text: str
    sentences: tuple[Sentence, ...]


def read_prompt(prompt: str) -> PromptText:
    """Cut a prompt into sentences; of a very long one the beginning and the end are read."""
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
    # The last mark stays visible, so that a full stop inside the quotation can still end the sentence.
    stop = inner[-2] if inner[-2] in ".!?" else MASK
    return inner[0] + MASK * (len(inner) - 3) + stop + inner[-1] if len(inner) > 2 else inner
