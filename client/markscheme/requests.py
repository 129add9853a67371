"""The calls of the API as data: what each client method sends. Raises `InvalidArgument`."""

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

from pydantic import BaseModel

from markscheme import arguments
from markscheme.arguments import (
    group_path,
    replay_path,
    rubric_path,
    run_path,
    validated,
    wire_value,
)
from markscheme.deadline import Deadline
from markscheme.errors import InvalidArgument
from markscheme.exchange import Exported
from markscheme.protocol import (
    IDEMPOTENCY_KEY,
    INDUCE_TIMEOUT,
    NDJSON,
    BatchReader,
    Call,
    CriterionLike,
    GroupLike,
    Model,
    Param,
    PromptLike,
    ReplayChanges,
    RolloutLike,
    RubricLike,
    RunLike,
    StudentLike,
    TeacherAnswerLike,
    TeacherLike,
    raise_for_status,
    read,
    read_export,
    read_text,
)
from markscheme.schema import (
    GroupDetail,
    InduceRequest,
    JudgeList,
    JudgePrompt,
    JudgeReports,
    Lineage,
    Replay,
    ReplayDetail,
    ReplayEstimate,
    ReplayList,
    ReplayRequest,
    RolloutRequest,
    Rubric,
    RubricCreate,
    RubricFork,
    RubricHealth,
    RubricImport,
    RubricImported,
    RubricPatch,
    RunComparison,
    RunDetail,
    RunList,
    RunPut,
    RunRecords,
    ScoredRollout,
    ScoreRequest,
    TeacherBankChange,
    TeacherResponseList,
    TeacherResponsesCreate,
    TeachRequest,
    TeachResult,
    UsageReport,
)
from markscheme.vocabulary import (
    Clamp,
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


def induce(
    prompt: PromptLike,
    student_responses: Sequence[StudentLike],
    teacher_responses: Sequence[TeacherAnswerLike] | None,
    reuse: ReusePolicy,
    tags: Sequence[str],
    judge: str | None,
    teacher_model: str | None,
    rubricator: str | None,
    thinking: Thinking,
    reuse_scope: ReuseScope | None,
    view: View | None,
    deadline_s: float | None,
) -> Call[Rubric]:
    """Build `POST /v1/rubrics:induce`."""
    deadline = Deadline.after(deadline_s)
    body = validated(
        InduceRequest,
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
        },
    )
    return Call(
        "POST",
        "/v1/rubrics:induce",
        partial(read, model=Rubric),
        _json(body),
        # A look-up makes nothing, so its answer need not be kept for a second attempt.
        headers={} if reuse == "frozen" else _new_idempotency_key(),
        timeout=INDUCE_TIMEOUT,
        deadline=deadline,
    )


def create_rubric(
    prompt: PromptLike,
    criteria: Sequence[CriterionLike],
    tags: Sequence[str],
    view: View | None,
    metadata: Mapping[str, Any] | None,
) -> Call[Rubric]:
    """Build `POST /v1/rubrics`."""
    fields = {
        "prompt": prompt,
        "criteria": criteria,
        "tags": tags,
        "view": view,
        "metadata": metadata or {},
    }
    body = validated(RubricCreate, fields)
    return _create("/v1/rubrics", body, Rubric)


def rubric(rubric: RubricLike) -> Call[Rubric]:
    """Build `GET /v1/rubrics/{id}`."""
    return _get(rubric_path(rubric), Rubric)


def fork_rubric(
    rubric: RubricLike,
    criteria: Sequence[CriterionLike] | None,
    tags: Sequence[str] | None,
    view: View | None,
    metadata: Mapping[str, Any] | None,
) -> Call[Rubric]:
    """Build `POST /v1/rubrics/{id}:fork`."""
    fields = {"criteria": criteria, "tags": tags, "view": view, "metadata": metadata}
    body = validated(RubricFork, fields)
    return _create(f"{rubric_path(rubric)}:fork", body, Rubric)


def change_rubric(
    rubric: RubricLike,
    visibility: Visibility | None,
    shared_with: Sequence[str] | None,
    tags: Sequence[str] | None,
    retired: bool | None,
) -> Call[Rubric]:
    """Build `PATCH /v1/rubrics/{id}`."""
    fields = {
        "visibility": visibility,
        "shared_with": shared_with,
        "tags": tags,
        "retired": retired,
    }
    body = validated(RubricPatch, fields)
    return Call("PATCH", rubric_path(rubric), partial(read, model=Rubric), _json(body))


def import_rubric(
    content: Mapping[str, Any] | Sequence[Any],
    format: ExchangeFormat,
    prompt: PromptLike | None,
    tags: Sequence[str],
    allow_loss: bool,
    mapping: Mapping[MapField, str] | None,
) -> Call[RubricImported]:
    """Build `POST /v1/rubrics:import`."""
    fields = {
        "format": format,
        "content": content,
        "prompt": prompt,
        "tags": tags,
        "allow_loss": allow_loss,
        "map": mapping,
    }
    # Without a key: an attempt whose answer was lost is found again by what it stored.
    return replace(
        _create("/v1/rubrics:import", validated(RubricImport, fields), RubricImported), headers={}
    )


def export_rubric(rubric: RubricLike, format: ExchangeFormat, allow_loss: bool) -> Call[Exported]:
    """Build `GET /v1/rubrics/{id}/export`."""
    allowed = wire_value(allow_loss, "allow_loss")
    if allowed not in (False, True):
        raise InvalidArgument("allow_loss", "must be true or false")
    params = {"format": wire_value(format, "format"), "allow_loss": int(allowed)}
    return Call("GET", f"{rubric_path(rubric)}/export", read_export, params=params)


def rubrics(
    page: type[Model],
    prompt: PromptLike | None,
    prompt_key: str | None,
    tags: Sequence[str],
    **filters: Param | None,
) -> Call[Model]:
    """Build `GET /v1/rubrics`; `page` is the model of the answer."""
    return _get(
        "/v1/rubrics",
        page,
        prompt_key=arguments.prompt_key(prompt, prompt_key),
        tag=arguments.names(tags, "tags"),
        **filters,
    )


def lineage(rubric: RubricLike) -> Call[Lineage]:
    """Build `GET /v1/rubrics/{id}/lineage`."""
    return _get(f"{rubric_path(rubric)}/lineage", Lineage)


def judges() -> Call[JudgeList]:
    """Build `GET /v1/judges`."""
    return _get("/v1/judges", JudgeList)


def run_report(run_id: str) -> Call[str]:
    """Build `GET /pages/runs/{id}/report`."""
    return Call("GET", f"/pages/{run_path(run_id).removeprefix('/v1/')}/report", read_text)


def judge_reports() -> Call[JudgeReports]:
    """Build `GET /v1/judges/report`."""
    return _get("/v1/judges/report", JudgeReports)


def rubric_health(rubric: RubricLike) -> Call[RubricHealth]:
    """Build `GET /v1/rubrics/{id}/health`."""
    return _get(f"{rubric_path(rubric)}/health", RubricHealth)


def runs(limit: int, after: str | None) -> Call[RunList]:
    """Build `GET /v1/runs`."""
    return _get("/v1/runs", RunList, limit=limit, after=after)


def run(run_id: str) -> Call[RunDetail]:
    """Build `GET /v1/runs/{id}`."""
    return _get(run_path(run_id), RunDetail)


def compare_runs(
    run_ids: Sequence[str], bins: int, criteria: int, limit: int, after: str | None
) -> Call[RunComparison]:
    """Build `GET /v1/runs:compare`."""
    return _get(
        "/v1/runs:compare",
        RunComparison,
        runs=arguments.names(run_ids, "run_ids"),
        bins=bins,
        criteria=criteria,
        limit=limit,
        after=after,
    )


def run_part(run_id: str, part: str, model: type[Model], **params: Param | None) -> Call[Model]:
    """Build `GET /v1/runs/{id}/{part}`."""
    return _get(f"{run_path(run_id)}/{part}", model, **params)


def put_run(run_id: str, **fields: Any) -> Call[RunDetail]:
    """Build `PUT /v1/runs/{id}`; fields that are `None` are left out."""
    body = validated(RunPut, {name: each for name, each in fields.items() if each is not None})
    content = body.model_dump(mode="json", exclude_unset=True)
    return Call("PUT", run_path(run_id), partial(read, model=RunDetail), content)


def add_run_records(run_id: str, records: Mapping[int, Mapping[str, float | None]]) -> Call[None]:
    """Build `POST /v1/runs/{id}/records`; what is not a finite number is sent as null."""
    try:
        given = [
            {"step": step, "metrics": {name: _finite(each) for name, each in metrics.items()}}
            for step, metrics in records.items()
        ]
    except AttributeError as error:  # neither a mapping nor pandas' rows
        raise InvalidArgument("records", "must have the metrics of each step by name") from error
    body = validated(RunRecords, {"records": given})
    return Call("POST", f"{run_path(run_id)}/records", raise_for_status, _json(body))


def estimate_replay(run_id: str, changes: ReplayChanges) -> Call[ReplayEstimate]:
    """Build `GET /v1/replays/estimate`."""
    asked = validated(ReplayRequest, {"run_id": run_id, **changes})
    call = _get("/v1/replays/estimate", ReplayEstimate, **asked.model_dump(exclude_defaults=True))
    # It looks up every verdict of a run, which takes a minute for thousands of groups.
    return replace(call, timeout=INDUCE_TIMEOUT)


def create_replay(run_id: str, changes: ReplayChanges) -> Call[Replay]:
    """Build `POST /v1/replays`."""
    body = validated(ReplayRequest, {"run_id": run_id, **changes})
    return _create("/v1/replays", body, Replay)


def replays(run_id: str | None, limit: int, after: str | None) -> Call[ReplayList]:
    """Build `GET /v1/replays`."""
    return _get("/v1/replays", ReplayList, run_id=run_id, limit=limit, after=after)


def replay(replay_id: str) -> Call[ReplayDetail]:
    """Build `GET /v1/replays/{id}`."""
    return _get(replay_path(replay_id), ReplayDetail)


def cancel_replay(replay_id: str) -> Call[Replay]:
    """Build `POST /v1/replays/{id}:cancel`."""
    return Call("POST", f"{replay_path(replay_id)}:cancel", partial(read, model=Replay))


def group(group_id: str) -> Call[GroupDetail]:
    """Build `GET /v1/groups/{id}`."""
    return _get(group_path(group_id), GroupDetail)


def judge_prompt(group_id: str, rollout: str) -> Call[JudgePrompt]:
    """Build `GET /v1/groups/{id}/judge-prompt`."""
    return _get(f"{group_path(group_id)}/judge-prompt", JudgePrompt, rollout=rollout)


def usage(
    group_by: Sequence[UsageKey], since: date | None, until: date | None, team: str | None
) -> Call[UsageReport]:
    """Build `GET /v1/usage`."""
    return _get(
        "/v1/usage",
        UsageReport,
        group_by=",".join(arguments.names(group_by, "group_by") or ()),
        since=arguments.day(since, "since"),
        until=arguments.day(until, "until"),
        team=team,
    )


def score(
    groups: Iterable[GroupLike],
    reuse: ReusePolicy,
    verify: VerifyMode,
    score_teachers: bool,
    ask_teacher: int,
    run: RunLike | None,
    judge: str | None,
    teacher_model: str | None,
    rubricator: str | None,
    thinking: Thinking,
    reuse_scope: ReuseScope | None,
    view: View | None,
    clamp: Clamp,
    deadline_s: float | None,
) -> tuple[Call[None], BatchReader]:
    """Build `POST /v1/scores`, and the reader that assembles the lines of its answer."""
    deadline = Deadline.after(deadline_s)
    body = validated(
        ScoreRequest,
        {
            "groups": arguments.groups(groups),
            "reuse": reuse,
            "verify": verify,
            "score_teachers": score_teachers,
            "ask_teacher": ask_teacher,
            "run": {"id": run, "step": 0} if isinstance(run, str) else run,
            "judge": judge,
            "teacher_model": teacher_model,
            "rubricator": rubricator,
            "thinking": thinking,
            "reuse_scope": reuse_scope,
            "view": view,
            "clamp": clamp,
        },
    )
    # NDJSON: groups arrive as they are judged, with heartbeats while nothing is ready.
    call = Call(
        "POST",
        "/v1/scores",
        raise_for_status,
        _json(body),
        headers={"Accept": NDJSON},
        deadline=deadline,
    )
    return call, BatchReader((g.id for g in body.groups), deadline)


def rollout(
    prompt: PromptLike,
    rollout: RolloutLike,
    key: str,
    size: int,
    wait_s: float,
    rubric_id: RubricLike | None,
    teacher_responses: Sequence[TeacherAnswerLike] | None,
    reuse: ReusePolicy,
    verify: VerifyMode,
    score_teachers: bool,
    ask_teacher: int,
    run: RunLike | None,
    judge: str | None,
    teacher_model: str | None,
    rubricator: str | None,
    thinking: Thinking,
    reuse_scope: ReuseScope | None,
    view: View | None,
    clamp: Clamp,
    deadline_s: float | None,
) -> Call[ScoredRollout]:
    """Build `POST /v1/rollouts`."""
    deadline = Deadline.after(deadline_s)
    body = validated(
        RolloutRequest,
        {
            "group": {"key": key, "size": size, "wait_s": wait_s},
            "prompt": prompt,
            "rollout": arguments.rollout(rollout),
            "rubric_id": None if rubric_id is None else arguments.rubric_id(rubric_id),
            "teacher_responses": teacher_responses,
            "reuse": reuse,
            "verify": verify,
            "score_teachers": score_teachers,
            "ask_teacher": ask_teacher,
            "run": {"id": run, "step": 0} if isinstance(run, str) else run,
            "judge": judge,
            "teacher_model": teacher_model,
            "rubricator": rubricator,
            "thinking": thinking,
            "reuse_scope": reuse_scope,
            "view": view,
            "clamp": clamp,
        },
    )
    return Call(
        "POST",
        "/v1/rollouts",
        partial(read, model=ScoredRollout),
        _json(body),
        timeout=INDUCE_TIMEOUT,
        deadline=deadline,
    )


def probe(path: str) -> Call[None]:
    """Build a POST without content: the service looks at the key's scopes, then refuses it."""
    return Call("POST", path, raise_for_status, {})


def save_teacher_responses(entries: Sequence[TeacherLike]) -> Call[TeacherBankChange]:
    """Build `POST /v1/teacher-responses`."""
    body = validated(TeacherResponsesCreate, {"entries": entries})
    return Call(
        "POST", "/v1/teacher-responses", partial(read, model=TeacherBankChange), _json(body)
    )


def teacher_responses(
    prompt: PromptLike | None, prompt_key: str | None
) -> Call[TeacherResponseList]:
    """Build `GET /v1/teacher-responses`."""
    return _get(
        "/v1/teacher-responses",
        TeacherResponseList,
        prompt_key=arguments.prompt_key(prompt, prompt_key),
    )


def teach(prompt: PromptLike, count: int, deadline_s: float | None) -> Call[TeachResult]:
    """Build `POST /v1/teacher-responses:sample`."""
    deadline = Deadline.after(deadline_s)
    body = validated(TeachRequest, {"prompt": prompt, "count": count})
    return Call(
        "POST",
        "/v1/teacher-responses:sample",
        partial(read, model=TeachResult),
        _json(body),
        timeout=INDUCE_TIMEOUT,
        deadline=deadline,
    )


def _finite(value: Any) -> Any:
    try:
        return value if value is None or math.isfinite(value) else None
    except (TypeError, OverflowError):
        return value  # no number, or one too large: validation says so


def _json(body: BaseModel) -> Any:
    return body.model_dump(mode="json", exclude_none=True)


def _get(path: str, model: type[Model], **params: Param | None) -> Call[Model]:
    """Build a GET; parameters that are `None` are left out."""
    given = {name: wire_value(value, name) for name, value in params.items() if value is not None}
    return Call("GET", path, partial(read, model=model), params=given)


def _create(path: str, body: BaseModel, model: type[Model]) -> Call[Model]:
    """Build a POST that creates something, once for all its attempts."""
    # Without defaults: a service of an older version refuses fields that it does not know.
    content = body.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return Call("POST", path, partial(read, model=model), content, headers=_new_idempotency_key())


def _new_idempotency_key() -> dict[str, str]:
    """Return a header for all attempts of one call: a lost answer makes no second rubric."""
    return {IDEMPOTENCY_KEY: uuid.uuid4().hex}
