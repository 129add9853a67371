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
    "about above across after again against allowed almost alone along already also although "
    "always among another anything aren around away because been before being below best better "
    "between both called cannot certain come could couldn didn different does doesn doing done "
    "down during each either else enough entire entirely even ever every everything exact "
    "exactly example explicitly fewer first following from given going good hadn hasn have haven "
    "having hello help here however important inside instead into just know last later least "
    "less like made make makes making many maybe might more most much must name named names need "
    "never once only other over particular people possible quite rather same second should "
    "shouldn similar since single some something soon still such sure take than thank thanks "
    "that their them then there these they thing things think this those three through "
    "throughout time times today together total towards twice under until upon used uses using "
    "very want wasn well were weren what whatsoever when where whether which while whole whom "
    "whose will with within without work would wouldn your yours yourself "
)
_COMMON = frozenset(_COMMON_TEXT.split())
_INSTRUCTION_TEXT = (
    # What the prompt tells the writer to do.
    "add aim answer appear ask avoid begin beginning change choose compare compose contain copy "
    "craft create define describe discuss draft elaborate emphasize end ensure evaluate exceed "
    "exclude expand explain finish forget generate give highlight identify include incorporate "
    "indicate invent keep limit list look mention offer omit outline pick please present "
    "produce provide recommend refrain remember repeat replace reply represent request require "
    "respond response review rewrite say separate show start suggest summarise summarize tell "
    "translate wrap wrapped wrapping write written "
    # What form the text is to have.
    "angular asterisk bold bracket bullet capital capitalize caps case character comma divider "
    "double exclamation form format heading headline highlight hyphen italic italicize json "
    "keyword language length letter line lower lowercase mark markdown maximum minimum number "
    "output paragraph part phrase placeholder point postscript punctuation question quotation "
    "quote rhyme rhyming section sentence square stanza syllable symbol syntax table text tick "
    "title upper uppercase verse vowel word "
)
_KIND_TEXT = (
    # The kind of text and its manner.
    "acrostic advertisement anecdote article blog brief caption casual concise conversation "
    "couplet creative description detailed dialogue email essay fable formal funny haiku "
    "humorous informal interesting itinerary joke limerick long lyrics mail memo novel pitch "
    "poem post proposal resume riddle rubric script short simple slogan song sonnet speech "
    "stories story style summaries summary template tone tweet version weird "
)
"""Words that say what to write and how, in their first form; what about is said by the others."""


def subject_words(text: str) -> list[str]:
    """Return the words of a prompt's subject, in lower case and order, each once.

    They are its `content_words` without those of the kind of text ("poem"): a response about
    anything can have these.
    """
    return [w for w in content_words(text) if root(w) not in _KIND_ROOTS]


def content_words(text: str) -> list[str]:
    """Return words that a response takes up from the prompt, in lower case and order, each once.

    They have four letters or more. Words that every text has ("about") and words of instruction
    ("describe", "commas") are left out.
    """
    return [
        w
        for w in dict.fromkeys(words(text.lower()))
        if len(w) >= _MIN_LETTERS
        and w.isalpha()
        and w not in _COMMON
        and root(w) not in _INSTRUCTION_ROOTS
    ]


def root(word: str) -> str:
    """Return what the forms of a word have in common: "describe", "describing", "describes"."""
    return _stem(word).removesuffix("e")


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


_INSTRUCTION_ROOTS = frozenset(root(word) for word in _INSTRUCTION_TEXT.split())
_KIND_ROOTS = frozenset(root(word) for word in _KIND_TEXT.split())
