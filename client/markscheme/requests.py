"""The calls of the API as data: what each client method sends."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import TypeAdapter

from markscheme.protocol import (
    IDEMPOTENCY_KEY,
    NDJSON,
    Call,
    CriterionLike,
    GroupLike,
    Param,
    PromptLike,
    StudentLike,
    TeacherLike,
    to_wire,
)
from markscheme.schema import (
    Group,
    InduceRequest,
    RubricCreate,
    RubricFork,
    RubricImport,
    RubricPatch,
    Run,
    ScoreRequest,
    TeacherResponsesCreate,
    TeachRequest,
)
from markscheme.vocabulary import (
    ExchangeFormat,
    MapField,
    ReusePolicy,
    ReuseScope,
    Thinking,
    UsageKey,
    VerifyMode,
    View,
    Visibility,
)

_GROUPS: TypeAdapter[list[Group]] = TypeAdapter(list[Group])


def induce(
    prompt: PromptLike,
    student_responses: Sequence[StudentLike],
    teacher_responses: Sequence[str] | None,
    reuse: ReusePolicy,
    tags: Sequence[str],
    judge: str | None,
    teacher_model: str | None,
    rubricator: str | None,
    thinking: Thinking,
    reuse_scope: ReuseScope | None,
    view: View | None = None,
) -> Call:
    """Build `POST /v1/rubrics:induce`."""
    body = InduceRequest.model_validate(
        to_wire(
            {
                "prompt": prompt,
                "student_responses": student_responses,
                "teacher_responses": teacher_responses,
                "reuse": reuse,
                "tags": tags,
                "judge": judge,
                "teacher_model": teacher_model,
                "rubricator": rubricator,
                "thinking": thinking,
                "reuse_scope": reuse_scope,
                "view": view,
            }
        )
    )
    return Call(
        "POST",
        "/v1/rubrics:induce",
        body.model_dump(mode="json", exclude_none=True),
        # A look-up makes nothing, so its answer need not be kept for a second attempt.
        headers=None if reuse == "frozen" else _new_idempotency_key(),
    )


def create_rubric(
    prompt: PromptLike,
    criteria: Sequence[CriterionLike],
    tags: Sequence[str],
    metadata: Mapping[str, Any],
) -> Call:
    """Build `POST /v1/rubrics`."""
    body = RubricCreate.model_validate(
        to_wire({"prompt": prompt, "criteria": criteria, "tags": tags, "metadata": dict(metadata)})
    )
    return Call(
        "POST",
        "/v1/rubrics",
        body.model_dump(mode="json", exclude_none=True),
        headers=_new_idempotency_key(),
    )


def rubric(rubric_id: str) -> Call:
    """Build `GET /v1/rubrics/{id}`."""
    return Call("GET", f"/v1/rubrics/{rubric_id}")


def fork_rubric(
    rubric_id: str, criteria: Sequence[CriterionLike] | None, tags: Sequence[str] | None
) -> Call:
    """Build `POST /v1/rubrics/{id}:fork`."""
    body = RubricFork.model_validate(
        to_wire({"criteria": criteria, "tags": None if tags is None else list(tags)})
    )
    return Call(
        "POST",
        f"/v1/rubrics/{rubric_id}:fork",
        body.model_dump(mode="json", exclude_none=True),
        headers=_new_idempotency_key(),
    )


def change_rubric(
    rubric_id: str,
    visibility: Visibility | None,
    shared_with: Sequence[str] | None,
    tags: Sequence[str] | None,
    retired: bool | None,
) -> Call:
    """Build `PATCH /v1/rubrics/{id}`."""
    body = RubricPatch(
        visibility=visibility,
        shared_with=None if shared_with is None else list(shared_with),
        tags=None if tags is None else list(tags),
        retired=retired,
    )
    return Call(
        "PATCH", f"/v1/rubrics/{rubric_id}", body.model_dump(mode="json", exclude_none=True)
    )


def import_rubric(
    content: Mapping[str, Any] | Sequence[Any],
    format: ExchangeFormat,
    prompt: PromptLike | None,
    tags: Sequence[str],
    allow_loss: bool,
    mapping: Mapping[MapField, str] | None,
) -> Call:
    """Build `POST /v1/rubrics:import`."""
    body = RubricImport(
        format=format,
        content=dict(content) if isinstance(content, Mapping) else list(content),
        prompt=to_wire(prompt),
        tags=list(tags),
        allow_loss=allow_loss,
        map=None if mapping is None else dict(mapping),
    )
    return Call(
        "POST", "/v1/rubrics:import", body.model_dump(mode="json"), headers=_new_idempotency_key()
    )


def export_rubric(rubric_id: str, format: ExchangeFormat, allow_loss: bool) -> Call:
    """Build `GET /v1/rubrics/{id}/export`."""
    return Call(
        "GET",
        f"/v1/rubrics/{rubric_id}/export",
        params={"format": format, "allow_loss": int(allow_loss)},
    )


def rubrics(**filters: Param | None) -> Call:
    """Build `GET /v1/rubrics`; filters that are `None` are left out."""
    return Call(
        "GET",
        "/v1/rubrics",
        params={name: value for name, value in filters.items() if value is not None},
    )


def lineage(rubric_id: str) -> Call:
    """Build `GET /v1/rubrics/{id}/lineage`."""
    return Call("GET", f"/v1/rubrics/{rubric_id}/lineage")


def judges() -> Call:
    """Build `GET /v1/judges`."""
    return Call("GET", "/v1/judges")


def usage(
    group_by: Sequence[UsageKey], since: date | None, until: date | None, team: str | None
) -> Call:
    """Build `GET /v1/usage`."""
    params = {
        "group_by": ",".join(group_by),
        "since": since.isoformat() if since else None,
        "until": until.isoformat() if until else None,
        "team": team,
    }
    return Call(
        "GET",
        "/v1/usage",
        params={name: value for name, value in params.items() if value is not None},
    )


def score(
    groups: Sequence[GroupLike],
    reuse: ReusePolicy,
    verify: VerifyMode,
    score_teachers: bool,
    ask_teacher: int,
    run: Run | None,
    judge: str | None,
    teacher_model: str | None,
    rubricator: str | None,
    thinking: Thinking,
    reuse_scope: ReuseScope | None,
    view: View | None = None,
) -> tuple[Call, list[str]]:
    """Build `POST /v1/scores`. Returns the call, and the ids of its groups in order."""
    body = ScoreRequest(
        groups=_GROUPS.validate_python(to_wire(list(groups))),
        reuse=reuse,
        verify=verify,
        score_teachers=score_teachers,
        ask_teacher=ask_teacher,
        run=run,
        judge=judge,
        teacher_model=teacher_model,
        rubricator=rubricator,
        thinking=thinking,
        reuse_scope=reuse_scope,
        view=view,
    )
    call = Call(
        "POST",
        "/v1/scores",
        body.model_dump(mode="json", exclude_none=True),
        headers={"Accept": NDJSON},
    )
    return call, [g.id for g in body.groups]


def save_teacher_responses(entries: Sequence[TeacherLike]) -> Call:
    """Build `POST /v1/teacher-responses`."""
    body = TeacherResponsesCreate.model_validate(to_wire({"entries": list(entries)}))
    return Call("POST", "/v1/teacher-responses", body.model_dump(mode="json", exclude_none=True))


def teacher_responses(prompt: str | None, prompt_key: str | None) -> Call:
    """Build `GET /v1/teacher-responses`."""
    return Call(
        "GET",
        "/v1/teacher-responses",
        params={k: v for k, v in (("prompt", prompt), ("prompt_key", prompt_key)) if v is not None},
    )


def teach(prompt: PromptLike, count: int) -> Call:
    """Build `POST /v1/teacher-responses:sample`."""
    body = TeachRequest.model_validate(to_wire({"prompt": prompt, "count": count}))
    return Call(
        "POST", "/v1/teacher-responses:sample", body.model_dump(mode="json", exclude_none=True)
    )


def _new_idempotency_key() -> dict[str, str]:
    """Return a header for all attempts of one call: a lost answer makes no second rubric."""
    return {IDEMPOTENCY_KEY: uuid.uuid4().hex}
