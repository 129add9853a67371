"""Constrained decoding of a verifier's reply: the model only chooses true or false.

Pure functions: the model is a function from the text so far to a margin, so this is tested without
one.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_LINE = re.compile(r"^(c\d+): (.*)$", re.MULTILINE)
_NONCE = re.compile(r"^nonce: (\S+)$", re.MULTILINE)
TRUE, FALSE = " true", " false"
Margin = Callable[[str], float]
"""Appends a text to what the model has read; returns logit(true) − logit(false) of the next token.
"""


class Unsupported(Exception):
    """The request does not ask for the verdicts of one answer."""


@dataclass(frozen=True)
class Decision:
    """One decided criterion: its words, how many were asked together, and the margin."""

    criterion: str
    asked_together: int
    margin: float

    @property
    def met(self) -> bool:
        """Whether the criterion is met."""
        return self.margin > 0


def offered_criteria(text: str) -> list[tuple[str, str]]:
    """Return the (id, words) lines c1, c2, … of a prompt in order, ignoring stray ones."""
    found: list[tuple[str, str]] = []
    for line in _LINE.finditer(text):
        if line.group(1) == f"c{len(found) + 1}":
            found.append((line.group(1), line.group(2)))
    return found


def skeleton(request: dict[str, Any], text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the criteria, and the pieces of the reply around their booleans.

    There is one piece more than criteria. Raises `Unsupported` for replies with other free fields:
    a rubric, a pool of answers, evidence.
    """
    try:
        properties = request["response_format"]["json_schema"]["schema"]["properties"]
        fields = properties["verdicts"]["items"]["properties"]
    except (KeyError, TypeError) as error:
        raise Unsupported(
            "only the verdicts of one answer, by JSON schema, are answered"
        ) from error
    criteria = offered_criteria(text)
    if not criteria or set(fields) != {"id", "met"}:
        raise Unsupported("verdicts need criteria c1, c2, … and the fields id and met, no others")
    nonce = _NONCE.search(text) if "nonce" in properties else None
    opening = f'"nonce": {json.dumps(nonce.group(1))}, ' if nonce else ""
    pieces = [f'{{{opening}"verdicts": [{{"id": "c1", "met":']
    pieces += [f'}}, {{"id": "{name}", "met":' for name, _ in criteria[1:]]
    return criteria, [*pieces, "}]}"]


def decide(
    criteria: Sequence[tuple[str, str]], pieces: Sequence[str], margin: Margin
) -> tuple[str, list[Decision]]:
    """Return the finished reply and its decisions.

    Each decision sees those before it, as in free decoding.
    """
    reply, unread, decisions = "", "", []
    for (_, words), piece in zip(criteria, pieces, strict=False):
        decision = Decision(words, len(criteria), margin(unread + piece))
        decisions.append(decision)
        unread = TRUE if decision.met else FALSE
        reply += piece + unread
    return reply + pieces[-1], decisions
