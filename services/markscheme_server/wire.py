"""Convert between wire models and domain objects. No decisions are made here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.hashing import ChatMessage, messages_of
from markscheme_server.domain.rubric import Criterion, Rubric, maximum_score
from markscheme_server.domain.trajectory import (
    Answer,
    Response,
    reply_of,
    response_of,
    unsupported_in,
)
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import Verdict
from markscheme_server.errors import Unprocessable
from markscheme_server.store.teachers import TeacherResponse
from markscheme_server.store.teams import Key, Team

_CHECK: TypeAdapter[Any] = TypeAdapter(schema.Check)


def messages(prompt: str | Sequence[schema.Message]) -> list[ChatMessage]:
    """Return a prompt as chat messages."""
    return messages_of(prompt if isinstance(prompt, str) else [m.model_dump() for m in prompt])


def text_messages(
    prompt: str | Sequence[schema.Message], param: str = "prompt"
) -> tuple[ChatMessage, ...]:
    """Return a prompt as chat messages. Raises `Unprocessable` for parts that are not text."""
    found = tuple(messages(prompt))
    require_text(unsupported_in(found), param)
    return found


def response(response: str | Sequence[schema.Message]) -> Response:
    """Return a response in its normal form."""
    if isinstance(response, str):
        return response
    return response_of([message.model_dump() for message in response])


def said(
    response: str | Sequence[schema.Message] | schema.Rollout | schema.StudentResponse,
) -> str | Sequence[schema.Message]:
    """Return a response's content: its text or its messages."""
    if isinstance(response, schema.Rollout | schema.StudentResponse):
        return response.messages if response.messages is not None else response.text or ""
    return response


def text_responses(
    responses: Sequence[str | Sequence[schema.Message]], param: str
) -> tuple[Response, ...]:
    """Return responses in their normal form.

    Raises `Unprocessable` for parts that are not text.
    """
    found = tuple(response(each) for each in responses)
    for number, each in enumerate(found):
        require_text(Answer(each).unsupported, f"{param}.{number}")
    return found


def require_text(unsupported: Sequence[str], param: str) -> None:
    """Raise `Unprocessable` if there are parts that are not text."""
    if unsupported:
        raise Unprocessable(
            f"{param}: {not_text(unsupported)}", code=UnscoredReason.NOT_SUPPORTED, param=param
        )


def not_text(unsupported: Sequence[str]) -> str:
    """Return the error message for parts that are not text."""
    kinds = ", ".join(repr(kind) for kind in unsupported)
    return f"judges read text only, and there are parts of type {kinds}"


def from_teacher_response(stored: TeacherResponse) -> schema.TeacherResponse:
    """Return a response of the teacher bank on the wire."""
    response = stored.response
    return schema.TeacherResponse(
        text=response if isinstance(response, str) else reply_of(response),
        messages=None if isinstance(response, str) else to_schema_messages(response.messages),
        model=stored.model,
        created_at=stored.created_at,
    )


def to_schema_messages(found: Sequence[Mapping[str, Any]]) -> list[schema.Message]:
    """Return chat messages on the wire."""
    return [schema.Message.model_validate(dict(message)) for message in found]


def to_rollout(rollout_id: str, response: Response, *, truncated: bool) -> schema.Rollout:
    """Return a stored response as a rollout of a request."""
    if isinstance(response, str):
        return schema.Rollout(id=rollout_id, text=response, truncated=truncated)
    messages = to_schema_messages(response.messages)
    return schema.Rollout(id=rollout_id, messages=messages, truncated=truncated)


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
            may_not_apply=c.may_not_apply,
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
            may_not_apply=c.may_not_apply,
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
        prompt=to_schema_messages(rubric.prompt),
        content_hash=rubric.content_hash,
        criteria=from_criteria(rubric.criteria),
        view=rubric.view,
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
    """Return a request's cost, and what reuse saved."""
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
        applicable=verdict.applicable,
        evidence=verdict.evidence,
        rationale=verdict.rationale,
        cached=verdict.cached,
        reason=verdict.reason,
    )
