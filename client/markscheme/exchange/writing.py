"""Write a rubric in another format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markscheme.exchange.base import (
    NATIVE,
    ROPD,
    ConversionIssues,
    Exported,
    assign_ids,
    check_format,
)
from markscheme.schema.base import MAX_CRITERIA, MAX_POINTS
from markscheme.schema.rubrics import Criterion, Rubric
from markscheme.vocabulary import ExchangeFormat


@dataclass(frozen=True, slots=True)
class _Holds:
    """Which parts of a rubric a format can hold."""

    name: str
    ids: bool = False
    categories: bool = False
    tags: bool = False
    min_points: int = -MAX_POINTS
    max_points: int = MAX_POINTS
    min_criteria: int = 1
    max_criteria: int = MAX_CRITERIA
    lone_question: bool = False


_NOT_MARKSCHEME: dict[str, _Holds] = {
    "ropd": _Holds(
        "ROPD",
        ids=True,
        categories=True,
        min_points=1,
        max_points=5,
        min_criteria=4,
        max_criteria=12,
    ),
    "healthbench": _Holds("HealthBench", categories=True, tags=True),
    "rar": _Holds("Rubrics as Rewards", ids=True, lone_question=True),
    "verifiers": _Holds("verifiers", ids=True, min_points=1),
}


def dump(rubric: Rubric, format: ExchangeFormat, *, allow_loss: bool = False) -> Exported:
    """Return the rubric in a format, and what was left out.

    Raises `NotRepresentable`; with `allow_loss` only for what would change a reward.
    """
    write = _WRITERS[check_format(format)]
    issues = ConversionIssues()
    criteria = assign_ids(rubric.criteria)
    if format != "native":
        _note_losses(rubric, criteria, _NOT_MARKSCHEME[format], issues)
    losses = issues.accept_losses(allow_loss)
    return Exported(write(rubric, criteria), losses)


def _note_losses(
    rubric: Rubric, criteria: Sequence[Criterion], holds: _Holds, issues: ConversionIssues
) -> None:
    name, refuse, lose = holds.name, issues.refusals.append, issues.losses.append
    if not holds.min_criteria <= len(criteria) <= holds.max_criteria:
        refuse(
            f"{name} takes {holds.min_criteria} to {holds.max_criteria} criteria; "
            f"there are {len(criteria)}"
        )
    if holds.lone_question and [m.role for m in rubric.prompt] != ["user"]:
        refuse(f"{name} holds one question; the prompt has other messages")
    elif holds.lone_question and not rubric.prompt[0].text.strip():
        refuse(f"{name} holds a question; the prompt is blank")
    for number, criterion in enumerate(criteria, 1):
        location = f"criterion {criterion.id}"
        if criterion.points < holds.min_points:
            refuse(f"{location}: {name} knows no negative points ({criterion.points})")
        if criterion.points > holds.max_points:
            refuse(
                f"{location}: {name} knows at most {holds.max_points} points ({criterion.points})"
            )
        if not criterion.text.strip():
            refuse(f"{location}: {name} takes no blank text")
        if criterion.check is not None:
            lose(f"{location}: {name} knows no checks; its text alone would say what to look for")
        if criterion.source is not None:
            lose(f"{location}: {name} has no place for its source")
        if not holds.ids and criterion.id != f"c{number}":
            lose(f"{location}: {name} knows no ids; it would come back as c{number}")
        if not holds.categories and criterion.category != "task_fulfilment":
            lose(f"{location}: {name} has no place for its category {criterion.category}")
    if rubric.tags and not holds.tags:
        lose(f"{name} has no place for tags: {', '.join(rubric.tags)}")


def _write_native(rubric: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    return {
        "schema_version": NATIVE,
        "prompt": [m.model_dump() for m in rubric.prompt],
        "criteria": [c.model_dump(mode="json") for c in criteria],
        "tags": list(rubric.tags),
    }


def _write_ropd(_: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    return {
        "schema_version": ROPD,
        "rubrics": [
            {"criterion_id": c.id, "category": c.category, "criterion": c.text, "points": c.points}
            for c in criteria
        ],
        "maximum_score": sum(c.points for c in criteria),
    }


def _write_healthbench(rubric: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    return {
        "example_tags": list(rubric.tags),
        "prompt": [m.model_dump() for m in rubric.prompt],
        "rubrics": [
            {"criterion": c.text, "points": c.points, "tags": [f"category:{c.category}"]}
            for c in criteria
        ],
    }


def _write_rar(rubric: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    return {
        "question": rubric.prompt[0].text,
        "rubric": [{"title": c.id, "description": c.text, "weight": c.points} for c in criteria],
    }


def _write_verifiers(_: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    return {
        "criteria": [
            {"name": c.id, "text": c.text, "weight": float(c.points), "choices": ["no", "yes"]}
            for c in criteria
        ]
    }


_WRITERS: dict[str, Callable[[Rubric, Sequence[Criterion]], dict[str, Any]]] = {
    "native": _write_native,
    "ropd": _write_ropd,
    "healthbench": _write_healthbench,
    "rar": _write_rar,
    "verifiers": _write_verifiers,
}
