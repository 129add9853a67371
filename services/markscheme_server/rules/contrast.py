"""Find words of the prompt that teachers use and students do not.

This is the one contrast that is not noise. Measured (docs/decisions/0002): criteria from the
teacher's own vocabulary, length or layout fit another prompt's answer as well; words that also
occur in the prompt do not.
"""

import re
from collections.abc import Sequence

from markscheme_server.domain.trajectory import reply_text
from markscheme_server.judge.base import StudentResponse
from markscheme_server.rules.text_metrics import words

MARGIN = 0.5
"""Minimum difference between the shares of teachers and of students that use a word."""
MAX_WORDS = 4
_MIN_LETTERS = 4
_COMMON_TEXT = (
    "about above across after again against all almost alone along already also although always "
    "among another answer "
    "anything around asked away because been before begin being below between both cannot come "
    "could does doing done "
    "down during each either else enough entire even every everything exactly example explain "
    "fewer first following "
    "from give given have having here however include including instead into just keep know "
    "language last least less "
    "letter letters like line list look made make many might more most much must need never "
    "number once only other "
    "over paragraph paragraphs part people phrase please point points provide question quite "
    "rather reply request "
    "response same section sections sentence sentences separate should since some something start "
    "starting still "
    "such sure take tell text than that their them then there these they thing things think this "
    "those three through "
    "time times today total under until upon used using very want well were what when where "
    "whether which while who "
    "whole whom whose will with within without word words work would write writing written your "
    "yours yourself"
)
_COMMON = frozenset(_COMMON_TEXT.split())


def content_words(text: str) -> list[str]:
    """Return the words of a text's topic, in lower case and order: four letters or more, unique."""
    return [
        w
        for w in dict.fromkeys(words(text.lower()))
        if len(w) >= _MIN_LETTERS and w.isalpha() and w not in _COMMON
    ]


def contrast_words(
    prompt: str, teachers: Sequence[str], students: Sequence[StudentResponse]
) -> list[str]:
    """Return prompt words whose share of teachers exceeds that of students by `MARGIN` or more.

    Where all rollouts were cut off, teachers are read only to the length of the longest rollout: a
    truncated rollout is not blamed for what comes later in an answer.
    """
    if not teachers or not students:
        return []
    limit = truncation_words(students)
    teacher_stems = [_stems(_first_words(text, limit)) for text in teachers]
    student_stems = [_stems(reply_text(response.text)) for response in students]
    chosen = []
    for word in content_words(prompt):
        stem = _stem(word)
        teacher_share = sum(stem in stems for stems in teacher_stems) / len(teachers)
        student_share = sum(stem in stems for stems in student_stems) / len(students)
        if teacher_share - student_share >= MARGIN:
            chosen.append(word)
    return chosen[:MAX_WORDS]


def truncation_words(students: Sequence[StudentResponse]) -> int | None:
    """Return the length, in words, of the longest rollout if all were cut off, else ``None``."""
    if not students or not all(response.truncated for response in students):
        return None
    return max(len(words(reply_text(response.text))) for response in students)


def _first_words(text: str, limit: int | None) -> str:
    return text if limit is None else " ".join(text.split()[:limit])


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in words(text.lower()))


def _stem(word: str) -> str:
    """Strip a word's commonest endings: "wizards" and "wizard" are one word."""
    return re.sub(r"(?:ies|es|s|ed|ing|ly)$", "", word) if len(word) > 4 else word
