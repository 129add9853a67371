"""PromptSecrets in the benchmark's texts, from which every verdict and every reward follows.

An answer's text carries ``ref-…`` and a criterion's ``req-…``, each a digest of the words around it. The stub judge
reads the marks out of whatever prompt a tool writes around the texts, so one rule decides for all tools, and the
driver can say of every number it gets back whether it is the right one.
"""

import hashlib
import re

ANSWER_ID = re.compile(r"\bref-[0-9a-f]{12}\b")
CRITERION_ID = re.compile(r"\breq-[0-9a-f]{12}\b")
MET_SHARE = 0.6


def answer_id(words: str) -> str:
    """The mark of an answer with these words."""
    return f"ref-{_digest(words)[:12]}"


def criterion_id(words: str) -> str:
    """The mark of a criterion with these words."""
    return f"req-{_digest(words)[:12]}"


def find_answer_id(text: str) -> str | None:
    """The first answer's mark in a text."""
    found = ANSWER_ID.search(text)
    return found.group() if found else None


def find_criterion_ids(text: str) -> list[str]:
    """The criteria's marks in a text, in order, each once."""
    return list(dict.fromkeys(CRITERION_ID.findall(text)))


def is_met(criterion: str | None, answer: str | None) -> bool:
    """The one rule: about :data:`MET_SHARE` of all pairs are met; where a mark is missing, nothing is."""
    if criterion is None or answer is None:
        return False
    return unit_hash(f"{criterion} {answer}") < MET_SHARE


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(_digest(text)[:12], 16) / 16**12


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
