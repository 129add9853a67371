"""Induce criteria from a prompt and its teacher's and students' responses.

The prompt's constraints come first and carry the weight, even where a teacher misses them. Easier
checks and a few contrast words follow. Every criterion has the gate: a response that is too short,
echoes the prompt or repeats itself meets none. Easier checks and topic words also require English
where it can be expected, against strings of non-words; a stated constraint does not, since a
response in another language can still satisfy it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from markscheme.checks import Check
from markscheme.vocabulary import Category, UnscoredReason
from markscheme_server.domain.hashing import message_text
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import reply_text
from markscheme_server.judge.base import InductionTask, JudgeFailure
from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.contrast import (
    contrast_words,
    root,
    subject_words,
    truncation_words,
)
from markscheme_server.rules.gate import Gate, expects_english, gate_for
from markscheme_server.rules.parse import parse_constraints
from markscheme_server.rules.partial_credit import easier_checks
from markscheme_server.rules.text_metrics import words

_CHECK: TypeAdapter[Any] = TypeAdapter(Check)
MAX_CRITERIA = 12
FULL_POINTS = 5
REDUCED_POINTS = 4
MANY_CONSTRAINTS = 4
"""With more constraints than this, each is worth `REDUCED_POINTS`."""
UNREACHABLE_POINTS = 1
TOPIC_SHARE = 0.25
"""Maximum share of the topic criteria in the rubric's points."""
TOPIC_WORDS = 24
_ENDINGS = frozenset({"ends_with", "postscript", "json_valid", "quoted"})
_WORDS_PER_SENTENCE = 5
_QUOTED = re.compile(r"“[^”]*”")


@dataclass(frozen=True, slots=True)
class _Draft:
    """A criterion before it has an id and a gate."""

    check: Mapping[str, Any]
    text: str
    points: int
    source: str | None
    category: Category = "task_fulfilment"
    stated: bool = False
    """It is the constraint as the prompt states it: no easier check and no topic word."""


def induce_criteria(task: InductionTask) -> tuple[Criterion, ...]:
    """Return the criteria of a task, with the ids c1, c2 and so on.

    Raises `JudgeFailure` when the prompt states no constraint.
    """
    prompt = "\n\n".join(message_text(m) for m in task.prompt if m["role"] in ("system", "user"))
    # Checks read the reply unless they say otherwise, and these say nothing.
    teachers = [reply_text(response) for response in task.teacher_responses]
    constraints = parse_constraints(prompt)[:MAX_CRITERIA]
    if not constraints:
        raise JudgeFailure(
            UnscoredReason.NO_RUBRIC,
            "the builtin judge found no constraint in the prompt that code "
            "can decide; a model judge can write a rubric for it",
        )
    word_limit = truncation_words(task.student_responses)
    gate = gate_for(prompt, constraints, teachers, word_limit)
    drafts = _draft_constraints(constraints, word_limit)
    contrast = contrast_words(prompt, teachers, task.student_responses)
    drafts += _draft_topic(prompt, contrast, constraints, drafts)
    strict_gate = gate.in_english() if expects_english(prompt, constraints, teachers) else gate
    return tuple(
        _criterion(number, draft, gate if draft.stated else strict_gate)
        for number, draft in enumerate(drafts, 1)
    )


def _draft_constraints(constraints: Sequence[Constraint], word_limit: int | None) -> list[_Draft]:
    full = FULL_POINTS if len(constraints) <= MANY_CONSTRAINTS else REDUCED_POINTS
    spare = MAX_CRITERIA - 1 - len(constraints)  # one criterion is reserved for the topic
    drafts = []
    for constraint in constraints:
        easier = easier_checks(constraint.check)[: max(spare, 0)]
        spare -= len(easier)
        if word_limit is not None and _is_unreachable(constraint.check, word_limit):
            points = UNREACHABLE_POINTS
        else:
            points = full - len(easier) if constraint.firm else 2  # easier checks share the points
        drafts.append(
            _Draft(constraint.check, constraint.text, points, constraint.source, stated=True)
        )
        drafts += [_Draft(each.check, each.text, 1, constraint.source) for each in easier]
    return drafts


def _is_unreachable(check: Mapping[str, Any], word_limit: int) -> bool:
    """Return whether rollouts that were all cut off at ``word_limit`` could not meet the check."""
    kind = check["kind"]
    if kind in _ENDINGS:
        return True
    if kind == "min_words":
        return bool(check["value"] > word_limit)
    if kind == "starts_with":
        return len(check["text"].split()) > word_limit
    if kind == "count" and check["of"] == "sentences":
        return bool((check.get("min") or 0) * _WORDS_PER_SENTENCE > word_limit)
    return False


def _draft_topic(
    prompt: str,
    contrast: Sequence[str],
    constraints: Sequence[Constraint],
    drafts: Sequence[_Draft],
) -> list[_Draft]:
    """Give one point for taking up the prompt's subject, and one for each contrast word.

    They are at most `TOPIC_SHARE` of the points.
    """
    points = sum(draft.points for draft in drafts)
    # Beside p points, p s / (1 - s) points have the share s of the whole.
    limit = min(MAX_CRITERIA - len(drafts), int(points * TOPIC_SHARE / (1 - TOPIC_SHARE)))
    if any(
        c.check["kind"] == "one_of" or c.check.get("language", "en") != "en" for c in constraints
    ):
        return []
    required = {
        word
        for c in constraints
        for text in c.check.get("texts", [c.check.get("text", "")])
        for word in text.lower().split()
    }
    # Nor is what a constraint is about, such as "French", a subject.
    stated = {root(word) for c in constraints for word in words(_QUOTED.sub(" ", c.text.lower()))}

    def is_free(word: str) -> bool:
        return word not in required and root(word) not in stated

    subject = [word for word in subject_words(prompt) if is_free(word)]
    topic_drafts = (
        [
            _Draft(
                {"kind": "contains", "texts": subject[:TOPIC_WORDS], "match": "any"},
                "The response takes up the subject of the prompt.",
                1,
                None,
            )
        ]
        if subject
        else []
    )
    topic_drafts += [
        _Draft(
            {"kind": "contains", "texts": [word]},
            f"The response takes up “{word}” from the prompt.",
            1,
            None,
            "observable_quality",
        )
        for word in contrast
        if is_free(word)
    ]
    return topic_drafts[: max(limit, 0)]


def _criterion(number: int, draft: _Draft, gate: Gate) -> Criterion:
    # Defaults are written out, as in what a caller sends: else a fork has criteria of other keys.
    check = _CHECK.validate_python(
        {"kind": "all_of", "checks": [*gate.checks, dict(draft.check)]}
    ).model_dump(exclude_none=True)
    source = draft.source[:4000] if draft.source else None
    return Criterion(
        f"c{number}",
        f"{draft.text[:3000]} {gate.text}",
        draft.points,
        draft.category,
        check,
        source,
    )
