"""Find the evidence of verdicts in the text of a response."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markscheme.schema import GroupVerdict

FOLDED = 20_000
"""Characters of a response that are shown at first; the rest is folded."""
_ELLIPSIS = re.compile(r"\.{3,}|…")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a response. `criteria`: those whose evidence it belongs to.

    `ends`: those of them whose evidence ends with this piece.
    """

    text: str
    criteria: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A response cut at its evidence: `shown` and, of a long one, `folded`.

    `missing`: verdicts whose quotation is not in the text.
    """

    shown: list[Piece]
    folded: list[Piece]
    missing: list[GroupVerdict]


def locate(quotation: str, text: str) -> list[tuple[int, int]]:
    """Return the positions of a quotation, one for each part around an ellipsis.

    White space and case are ignored. Empty unless all its parts are found, in order.
    """
    found, at = [], 0
    for part in _ELLIPSIS.split(quotation):
        words = part.strip(" \n\t\"'“”‘’").split()
        if not words:
            continue
        match = re.compile(r"\s+".join(map(re.escape, words)), re.IGNORECASE).search(text, at)
        if match is None:
            return []
        found.append(match.span())
        at = match.end()
    return found


def mark(text: str, verdicts: Sequence[GroupVerdict]) -> Passage:
    """Cut a response where quotations of met criteria begin and end."""
    spans: list[tuple[int, int, str]] = []
    missing = []
    for verdict in verdicts:
        if not (verdict.evidence and verdict.evidence_is_quotation):
            continue
        places = locate(verdict.evidence, text)
        spans += [(start, end, verdict.criterion_id) for start, end in places]
        if not places:
            missing.append(verdict)
    edges = sorted({0, len(text), min(FOLDED, len(text)), *(e for s in spans for e in s[:2])})
    pieces: list[tuple[int, Piece]] = []
    for start, end in zip(edges, edges[1:], strict=False):
        inside = [s for s in spans if s[0] <= start and end <= s[1]]
        pieces.append(
            (
                start,
                Piece(
                    text[start:end],
                    tuple(dict.fromkeys(name for _, _, name in inside)),
                    tuple(dict.fromkeys(name for _, last, name in inside if last == end)),
                ),
            )
        )
    return Passage(
        [piece for start, piece in pieces if start < FOLDED],
        [piece for start, piece in pieces if start >= FOLDED],
        missing,
    )
