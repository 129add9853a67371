"""The oracle: ids in the texts from which every right verdict and reward follows.

An answer's text carries `ref-…` and a criterion's `req-…`, each a digest of the words around it.
The stub judge finds the ids in whatever prompt a tool writes, so one rule decides for all tools,
and the driver can check every number that it gets back.
"""

import hashlib
import re

ANSWER_ID = re.compile(r"\bref-[0-9a-f]{12}\b")
CRITERION_ID = re.compile(r"\breq-[0-9a-f]{12}\b")
MET_SHARE = 0.6


def answer_id(words: str) -> str:
    """Return the id of an answer with these words."""
    return f"ref-{_digest(words)[:12]}"


def criterion_id(words: str) -> str:
    """Return the id of a criterion with these words."""
    return f"req-{_digest(words)[:12]}"


def find_answer_id(text: str) -> str | None:
    """Return the first answer's id in a text."""
    found = ANSWER_ID.search(text)
    return found.group() if found else None


def find_criterion_ids(text: str) -> list[str]:
    """Return the criteria's ids in a text, in order, without duplicates."""
    return list(dict.fromkeys(CRITERION_ID.findall(text)))


def is_met(criterion: str | None, answer: str | None) -> bool:
    """Return the right verdict: about `MET_SHARE` of all pairs are met, none without both ids."""
    if criterion is None or answer is None:
        return False
    return unit_hash(f"{criterion} {answer}") < MET_SHARE


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int(_digest(text)[:12], 16) / 16**12


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
