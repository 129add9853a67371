"""From a prompt, its teacher's and its students' responses to criteria: what is asked, in rungs, behind a gate.

What the prompt states comes first and carries the weight; it is never dropped because a teacher misses it. A few
contrast words follow. Every criterion is gated: a response that is too short, echoes the prompt or repeats itself
is no answer, and meets none of them. Easier rungs and the words of the topic are also closed to strings of non-words;
the stated constraint itself is not, since a response in no known language can still follow it to the letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markscheme.vocabulary import Category, UnscoredReason
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import InductionTask, JudgeFailure, Response
from markscheme_server.rules.constraint import Constraint
from markscheme_server.rules.contrast import content_words, contrast_words, reach_of
from markscheme_server.rules.gate import Gate, expects_english, gate_for
from markscheme_server.rules.parse import read_constraints
from markscheme_server.rules.partial_credit import rungs

MOST_CRITERIA = 12
FULL_POINTS = 5
CROWDED_POINTS = 4
CROWDED = 4
"""With more constraints than this each is worth :data:`CROWDED_POINTS`."""
OUT_OF_REACH_POINTS = 1
TOPIC_SHARE = 0.25
TOPIC_WORDS = 24
_ENDINGS = frozenset({"ends_with", "postscript", "json_valid", "quoted"})
_WORDS_PER_SENTENCE = 5


@dataclass(frozen=True, slots=True)
class _Draft:
    """A criterion before it has an id and a gate."""

    check: Mapping[str, Any]
    text: str
    points: int
    source: str | None
    category: Category = "task_fulfilment"
    stated: bool = False
    """The constraint as the prompt states it, neither an easier rung nor a word of its topic."""


def induce_criteria(task: InductionTask) -> tuple[Criterion, ...]:
    """The rubric of a task, ids c1, c2, …; raises :class:`JudgeFailure` when the prompt states nothing."""
    prompt = "\n\n".join(m["content"] for m in task.prompt if m["role"] in ("system", "user"))
    candidates = read_constraints(prompt)[:MOST_CRITERIA]
    if not candidates:
        raise JudgeFailure(
            UnscoredReason.NO_RUBRIC,
            "the builtin judge found no constraint in the prompt that code "
            "can decide; a model judge can write a rubric for it",
        )
    gate = gate_for(prompt, candidates, task.teacher_responses, reach_of(task.student_responses))
    drafts = _constraints(candidates, task.student_responses)
    drafts += _tied_to_topic(prompt, task, candidates, drafts)
    fluent = (
        gate.in_english() if expects_english(prompt, candidates, task.teacher_responses) else gate
    )
    return tuple(
        _criterion(number, draft, gate if draft.stated else fluent)
        for number, draft in enumerate(drafts, 1)
    )


def _constraints(candidates: Sequence[Constraint], students: Sequence[Response]) -> list[_Draft]:
    reach = reach_of(students)
    full = FULL_POINTS if len(candidates) <= CROWDED else CROWDED_POINTS
    spare = MOST_CRITERIA - 1 - len(candidates)
    drafts = []
    for candidate in candidates:
        steps = rungs(candidate.check)[: max(spare, 0)]
        spare -= len(steps)
        hard = reach is not None and _out_of_reach(candidate.check, reach)
        top = OUT_OF_REACH_POINTS if hard else full - len(steps) if candidate.firm else 2
        drafts.append(_Draft(candidate.check, candidate.text, top, candidate.source, stated=True))
        drafts += [_Draft(step.check, step.text, 1, candidate.source) for step in steps]
    return drafts


def _out_of_reach(check: Mapping[str, Any], reach: int) -> bool:
    """Whether rollouts that were all cut off at ``reach`` words could not have met the check."""
    kind = check["kind"]
    if kind in _ENDINGS:
        return True
    if kind == "min_words":
        return bool(check["value"] > reach)
    if kind == "starts_with":
        return len(check["text"].split()) > reach
    if kind == "count" and check["of"] == "sentences":
        return bool((check.get("min") or 0) * _WORDS_PER_SENTENCE > reach)
    return False


def _tied_to_topic(
    prompt: str, task: InductionTask, candidates: Sequence[Constraint], drafts: Sequence[_Draft]
) -> list[_Draft]:
    """One point for being about the prompt at all, then one for each contrast word, a quarter of the weight at most."""
    weight = sum(draft.points for draft in drafts)
    room = min(MOST_CRITERIA - len(drafts), int(weight * TOPIC_SHARE / (1 - TOPIC_SHARE)))
    if any(
        c.check["kind"] == "one_of" or c.check.get("language", "en") != "en" for c in candidates
    ):
        return []
    settled = {
        word
        for c in candidates
        for text in c.check.get("texts", [c.check.get("text", "")])
        for word in text.lower().split()
    }
    topic = [word for word in content_words(prompt) if word not in settled][:TOPIC_WORDS]
    fresh = [
        w
        for w in contrast_words(prompt, task.teacher_responses, task.student_responses)
        if w not in settled
    ]
    tied = (
        [
            _Draft(
                {"kind": "contains", "texts": topic, "match": "any"},
                "The response takes up the subject of the prompt.",
                1,
                None,
            )
        ]
        if topic
        else []
    )
    tied += [
        _Draft(
            {"kind": "contains", "texts": [word]},
            f"The response takes up “{word}” from the prompt.",
            1,
            None,
            "observable_quality",
        )
        for word in fresh
    ]
    return tied[: max(room, 0)]


def _criterion(number: int, draft: _Draft, gate: Gate) -> Criterion:
    check = {"kind": "all_of", "checks": [*gate.checks, dict(draft.check)]}
    source = draft.source[:4000] if draft.source else None
    return Criterion(
        f"c{number}",
        f"{draft.text[:3000]} {gate.text}",
        draft.points,
        draft.category,
        check,
        source,
    )
