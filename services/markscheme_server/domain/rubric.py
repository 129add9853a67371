"""A rubric and its criteria as the service reasons about them. Pure: no I/O, no framework."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markscheme.vocabulary import Category, RubricOrigin, Visibility

Check = Mapping[str, Any]
"""A declarative check as on the wire: ``kind`` and its arguments (``markscheme.checks`` has the closed set)."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One binary statement about a response, worth ``points`` when met (negative: a pitfall).

    ``check`` makes it decidable by code. ``source`` is the span of the prompt it was read from.
    """

    id: str
    text: str
    points: int
    category: Category = "task_fulfilment"
    check: Check | None = None
    source: str | None = None


class InvalidRubric(ValueError):
    """The criteria do not make a rubric; the message says why."""


def validate_criteria(criteria: tuple[Criterion, ...]) -> None:
    """Raise :class:`InvalidRubric` unless ``criteria`` can yield a reward.

    Ids must be unique and points non-zero. At least one criterion must have positive points: without
    one the denominator of the reward is empty.
    """
    if not criteria:
        raise InvalidRubric("a rubric needs at least one criterion")
    if len({c.id for c in criteria}) != len(criteria):
        raise InvalidRubric("criterion ids must be unique")
    if any(c.points == 0 for c in criteria):
        raise InvalidRubric("points must not be 0")
    if not any(c.points > 0 for c in criteria):
        raise InvalidRubric("a rubric needs at least one criterion with positive points")


def maximum_score(criteria: tuple[Criterion, ...]) -> int:
    """The most points a response can earn: W = sum of the positive points."""
    return sum(c.points for c in criteria if c.points > 0)


@dataclass(frozen=True, slots=True)
class Rubric:
    """A stored rubric. What it says is immutable: a change is a new version with this one as its parent.

    Who sees it, its tags and whether it is retired may change: other teams see it when it is the organisation's or
    shared with them; a retired one is read as before, and no group gets it that does not name it. ``cost_usd``: what
    inducing it cost, where that is known.
    """

    id: str
    team: str
    prompt_key: str
    prompt: tuple[Mapping[str, str], ...]
    version: int
    parent_id: str | None
    content_hash: str
    criteria: tuple[Criterion, ...]
    origin: RubricOrigin
    tags: tuple[str, ...]
    provenance: Mapping[str, Any]
    created_at: datetime
    visibility: Visibility = "private"
    shared_with: tuple[str, ...] = ()
    retired_at: datetime | None = None
    cost_usd: float | None = None
