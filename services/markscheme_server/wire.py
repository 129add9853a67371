"""Between the wire contract and the domain: shapes only, no decisions."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from markscheme import schema
from markscheme_server.domain.hashing import ChatMessage, messages_of
from markscheme_server.domain.rubric import Criterion, Rubric, maximum_score
from markscheme_server.domain.verdict import Verdict
from markscheme_server.store.teams import Key, Team

_CHECK: TypeAdapter[Any] = TypeAdapter(schema.Check)


def messages(prompt: str | Sequence[schema.Message]) -> list[ChatMessage]:
    """A prompt as the domain keeps it."""
    return messages_of(prompt if isinstance(prompt, str) else [m.model_dump() for m in prompt])


def to_criteria(criteria: Sequence[schema.Criterion]) -> tuple[Criterion, ...]:
    """Criteria as the domain keeps them, numbered c1, c2, … where they bring no ids."""
    return tuple(
        Criterion(
            id=c.id or f"c{i}",
            text=c.text,
            points=c.points,
            category=c.category,
            check=c.check.model_dump(exclude_none=True) if c.check is not None else None,
            source=c.source,
        )
        for i, c in enumerate(criteria, 1)
    )


def from_criteria(criteria: Sequence[Criterion]) -> list[schema.Criterion]:
    """Criteria as they travel."""
    return [
        schema.Criterion(
            id=c.id,
            text=c.text,
            points=c.points,
            category=c.category,
            source=c.source,
            check=_CHECK.validate_python(dict(c.check)) if c.check is not None else None,
        )
        for c in criteria
    ]


def from_rubric(rubric: Rubric) -> schema.Rubric:
    """A rubric as it travels."""
    return schema.Rubric(
        id=rubric.id,
        version=rubric.version,
        parent_id=rubric.parent_id,
        prompt_key=rubric.prompt_key,
        prompt=[schema.Message.model_validate(dict(m)) for m in rubric.prompt],
        content_hash=rubric.content_hash,
        criteria=from_criteria(rubric.criteria),
        maximum_score=maximum_score(rubric.criteria),
        origin=rubric.origin,
        tags=list(rubric.tags),
        created_at=rubric.created_at,
        team=rubric.team,
        visibility=rubric.visibility,
        shared_with=list(rubric.shared_with),
        retired_at=rubric.retired_at,
        provenance=schema.Provenance.model_validate(dict(rubric.provenance)),
    )


def from_team(team: Team) -> schema.Team:
    """A team as it travels."""
    return schema.Team(**asdict(team))


def from_key(key: Key) -> schema.Key:
    """What is kept of a key, as it travels."""
    return schema.Key(**_plain(key))


def from_new_key(secret: str, key: Key) -> schema.KeyCreated:
    """A key that was just made, with the key itself."""
    return schema.KeyCreated(key=secret, **_plain(key))


def _plain(key: Key) -> dict[str, Any]:
    return asdict(key) | {"scopes": list(key.scopes)}


@lru_cache(maxsize=8192)
def from_verdict(verdict: Verdict) -> schema.VerdictView:
    """A verdict as it travels. Most are one of a few: without evidence, known by criterion and outcome."""
    return schema.VerdictView(
        criterion_id=verdict.criterion_id,
        met=verdict.met,
        evidence=verdict.evidence,
        rationale=verdict.rationale,
        cached=verdict.cached,
        reason=verdict.reason,
    )
