"""Convert between wire models and domain objects. No decisions are made here."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from markscheme import schema
from markscheme_server.domain.hashing import ChatMessage, messages_of
from markscheme_server.domain.rubric import Criterion, Rubric, maximum_score
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import Verdict
from markscheme_server.store.teams import Key, Team

_CHECK: TypeAdapter[Any] = TypeAdapter(schema.Check)


def messages(prompt: str | Sequence[schema.Message]) -> list[ChatMessage]:
    """Return a prompt as chat messages."""
    return messages_of(prompt if isinstance(prompt, str) else [m.model_dump() for m in prompt])


def to_criteria(criteria: Sequence[schema.Criterion]) -> tuple[Criterion, ...]:
    """Return criteria of the domain, numbered c1, c2, … where they have no ids."""
    return tuple(
        Criterion(
            id=c.id or f"c{i}",
            text=c.text,
            points=c.points,
            category=c.category,
            check=c.check.model_dump(exclude_none=True) if c.check is not None else None,
            source=c.source,
            metadata=c.metadata,
        )
        for i, c in enumerate(criteria, 1)
    )


def from_criteria(criteria: Sequence[Criterion]) -> list[schema.Criterion]:
    """Return criteria of the wire."""
    return [
        schema.Criterion(
            id=c.id,
            text=c.text,
            points=c.points,
            category=c.category,
            source=c.source,
            metadata=dict(c.metadata),
            check=_CHECK.validate_python(dict(c.check)) if c.check is not None else None,
        )
        for c in criteria
    ]


def from_rubric(rubric: Rubric) -> schema.Rubric:
    """Return a rubric of the wire; what a caller may not see must have been removed."""
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
        metadata=dict(rubric.metadata),
    )


def from_team(team: Team) -> schema.Team:
    """Return a team of the wire."""
    return schema.Team(**asdict(team))


def from_key(key: Key) -> schema.Key:
    """Return the record of a key, without the key itself."""
    return schema.Key(**_key_fields(key))


def from_new_key(secret: str, key: Key) -> schema.KeyCreated:
    """Return a key that was just created, with the key itself."""
    return schema.KeyCreated(key=secret, **_key_fields(key))


def _key_fields(key: Key) -> dict[str, Any]:
    return asdict(key) | {"scopes": list(key.scopes)}


def from_usage(
    usage: JudgeUsage, *, cached_verdicts: int = 0, saved_usd: float = 0.0
) -> schema.Usage:
    """Return what a request cost, and what reuse saved it."""
    return schema.Usage(
        judge_calls=usage.calls,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_verdicts=cached_verdicts,
        cached_tokens=usage.cached_tokens,
        cost_usd=usage.cost_usd,
        saved_usd=saved_usd,
    )


# Most verdicts have no evidence, so that they are equal for a criterion and an outcome.
@lru_cache(maxsize=8192)
def from_verdict(verdict: Verdict) -> schema.VerdictView:
    """Return a verdict of the wire."""
    return schema.VerdictView(
        criterion_id=verdict.criterion_id,
        met=verdict.met,
        evidence=verdict.evidence,
        rationale=verdict.rationale,
        cached=verdict.cached,
        reason=verdict.reason,
    )
