"""Rubrics and their criteria. Pure: no I/O, no framework."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from markscheme.vocabulary import Category, RubricOrigin, Visibility

Check = Mapping[str, Any]
"""A declarative check as on the wire: `kind` and its arguments, see `markscheme.checks`."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One binary statement about a response, worth `points` when met (negative: a pitfall).

    `check` makes it decidable by code. `source` is the span of the prompt it was read from.
    `metadata` is open JSON that changes no verdict; criteria that differ in it alone are equal.
    """

    id: str
    text: str
    points: int
    category: Category = "task_fulfilment"
    check: Check | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


def maximum_score(criteria: tuple[Criterion, ...]) -> int:
    """Return the most points a response can earn: W, the sum of the positive points."""
    return sum(c.points for c in criteria if c.points > 0)


@dataclass(frozen=True, slots=True)
class Rubric:
    """A stored rubric. Its criteria are immutable: a change is a new version with a parent.

    Who sees it, its tags and whether it is retired may change. Other teams see it if it is the
    organisation's or shared with them. A retired rubric can be read as before, and only groups
    that name it get it. `cost_usd`: what inducing it cost, if that is known. `metadata`: open JSON,
    which `RubricStore.metadata` reads.
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
    metadata: Mapping[str, Any] = field(default_factory=dict)
