"""Words that the teacher took up from the prompt and the students did not: the one contrast that is not noise.

Measured (docs/decisions/0002): criteria from the teacher's own vocabulary, length or layout come as readily from
another prompt's answer; words that stand in the prompt as well do not.
"""

import re
from collections.abc import Sequence

from markscheme_server.judge.base import Response
from markscheme_server.rules.text_metrics import words

MARGIN = 0.5
"""How much larger the share of teachers with the word must be than the share of students."""
MOST = 4
_SHORTEST = 4
_COMMON_TEXT = (
    "about above across after again against all almost alone along already also although always among another answer "
    "anything around asked away because been before begin being below between both cannot come could does doing done "
    "down during each either else enough entire even every everything exactly example explain fewer first following "
    "from give given have having here however include including instead into just keep know language last least less "
    "letter letters like line list look made make many might more most much must need never number once only other "
    "over paragraph paragraphs part people phrase please point points provide question quite rather reply request "
    "response same section sections sentence sentences separate should since some something start starting still "
    "such sure take tell text than that their them then there these they thing things think this those three through "
    "time times today total under until upon used using very want well were what when where whether which while who "
    "whole whom whose will with within without word words work would write writing written your yours yourself"
)
_COMMON = frozenset(_COMMON_TEXT.split())


def content_words(text: str) -> list[str]:
    """The words that carry a text's topic: lower case, four letters or more, each once, in order."""
    return [
        w
        for w in dict.fromkeys(words(text.lower()))
        if len(w) >= _SHORTEST and w.isalpha() and w not in _COMMON
    ]


def contrast_words(prompt: str, teachers: Sequence[str], students: Sequence[Response]) -> list[str]:
    """Prompt words that the teachers use and the students do not, by a share of :data:`MARGIN` or more.

    Where rollouts were cut off, teachers are read only as far as the longest rollout goes: what comes later
    in an answer is no fault of a truncated one.
    """
    if not teachers or not students:
        return []
    reach = reach_of(students)
    taught = [_stems(_first_words(text, reach)) for text in teachers]
    learnt = [_stems(response.text) for response in students]
    chosen = []
    for word in content_words(prompt):
        stem = _stem(word)
        margin = sum(stem in s for s in taught) / len(taught) - sum(
            stem in s for s in learnt
        ) / len(learnt)
        if margin >= MARGIN:
            chosen.append(word)
    return chosen[:MOST]


def reach_of(students: Sequence[Response]) -> int | None:
    """The most words a rollout got to when all were cut off at the token limit; ``None`` when one ended by itself."""
    if not students or not all(response.truncated for response in students):
        return None
    return max(len(words(response.text)) for response in students)


def _first_words(text: str, limit: int | None) -> str:
    return text if limit is None else " ".join(text.split()[:limit])


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in words(text.lower()))


def _stem(word: str) -> str:
    """A word without its commonest endings: "wizards" and "wizard" are one."""
    return re.sub(r"(?:ies|es|s|ed|ing|ly)$", "", word) if len(word) > 4 else word
