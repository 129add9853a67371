"""``/v1/rubrics``: bring, induce, read, list and share rubrics."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from markscheme import schema
from markscheme.vocabulary import Category, RubricOrigin
from markscheme_server import wire
from markscheme_server.api import idempotency
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES, judge_error
from markscheme_server.api.idempotency import TakesKey
from markscheme_server.api.services import (
    BUDGET_WARNING,
    NO_NUL,
    WARNS,
    DeadlineMs,
    Inducer,
    Limit,
    PromptKey,
    PromptText,
    Reader,
    Services,
    UsesServices,
)
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import judged_text, messages_of, prompt_key, text_key
from markscheme_server.domain.rubric import Criterion, InvalidRubric, Rubric, validate_criteria
from markscheme_server.errors import Forbidden, NotFound, Unprocessable
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.judge.base import Response as StudentText
from markscheme_server.rules.checks import validate_check
from markscheme_server.scoring.rubrics import RubricRequest
from markscheme_server.store.audit import actor_of
from markscheme_server.store.rubrics import Filters, NotTheirs, Search

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.post(
    "/rubrics",
    status_code=201,
    response_model=schema.Rubric,
    summary="Bring your own rubric",
    responses=idempotency.RESPONSES,
)
async def create_rubric(
    payload: schema.RubricCreate, caller: Inducer, services: UsesServices, once: TakesKey
) -> Response:
    criteria = await checked_criteria(payload.criteria)

    async def save() -> schema.Rubric:
        saved = await services.store.rubrics.save(
            team=caller.team,
            prompt=wire.messages(payload.prompt),
            criteria=criteria,
            origin="imported",
            tags=payload.tags,
            provenance={},
            actor=actor_of(caller),
        )
        return (await shown_rubrics(services, caller, [saved]))[0]

    return await once.answer(payload, save, status=201)


@router.post(
    "/rubrics/{rubric_id:id}:fork",
    status_code=201,
    response_model=schema.Rubric,
    responses=idempotency.RESPONSES,
    summary="Edit a rubric as a new version, or take another team's over",
)
async def fork_rubric(
    rubric_id: str,
    payload: schema.RubricFork,
    caller: Inducer,
    services: UsesServices,
    once: TakesKey,
) -> Response:
    """The new rubric is the caller's team's, private, and names the one it comes from as its parent. Where the team's
    newest for the prompt has these criteria already, that one is the answer, as it stands. With other criteria its
    author is the caller's team, and what made the source is not its provenance."""
    source = await get_rubric(services, caller, rubric_id)
    criteria = (
        source.criteria if payload.criteria is None else await checked_criteria(payload.criteria)
    )
    provenance = source.provenance if source.team == caller.team else _told(source)

    async def save() -> schema.Rubric:
        saved = await services.store.rubrics.save(
            team=caller.team,
            prompt=[dict(m) for m in source.prompt],
            criteria=criteria,
            origin="forked",
            parent=source,
            tags=source.tags if payload.tags is None else payload.tags,
            provenance=provenance if criteria == source.criteria else {},
            actor=actor_of(caller),
        )
        return (await shown_rubrics(services, caller, [saved]))[0]

    return await once.answer(payload, save, status=201)


@router.post(
    "/rubrics:induce",
    response_model=schema.Rubric,
    responses=idempotency.RESPONSES | {200: {"headers": WARNS}},
    summary="Induce a rubric by contrasting teacher and student responses",
)
async def induce_rubric(
    payload: schema.InduceRequest,
    caller: Inducer,
    services: UsesServices,
    once: TakesKey,
    request: Request,
    deadline_ms: DeadlineMs = None,
) -> Response:
    deadline = services.scores.deadline(deadline_ms)
    wanted = RubricRequest(
        caller.team,
        tuple(wire.messages(payload.prompt)),
        tuple(payload.teacher_responses) if payload.teacher_responses is not None else None,
        tuple(
            StudentText(judged_text(s, payload.thinking))
            if isinstance(s, str)
            else StudentText(judged_text(s.text, payload.thinking), s.truncated)
            for s in payload.student_responses
        ),
        services.judges.get(payload.judge, "rubricator"),
        payload.reuse,
        payload.run,
        tuple(payload.tags),
        caller.key,
        Filters(payload.teacher_model, payload.rubricator),
        payload.reuse_scope or caller.reuse_scope,
    )

    async def induce() -> schema.Rubric:
        try:
            found = await services.rubrics.resolve(wanted, CallContext(deadline, team=caller.team))
        except JudgeFailure as failure:
            raise judge_error(failure) from failure
        return (await shown_rubrics(services, caller, [found.rubric]))[0]

    answer = await while_connected(request, once.answer(payload, induce, status=200))
    if warning := await services.budgets.warning(caller.team, payload.run):
        answer.headers[BUDGET_WARNING] = warning
    return answer


@router.get("/rubrics", summary="Find rubrics, newest first")
async def list_rubrics(
    caller: Reader,
    services: UsesServices,
    prompt: PromptText = None,
    key: PromptKey = None,
    origin: RubricOrigin | None = None,
    text: Annotated[
        str | None,
        Query(
            max_length=1000,
            pattern=NO_NUL,
            description=(
                "Words that are all in the prompt or the criteria, whatever their endings"
            ),
        ),
    ] = None,
    tag: Annotated[list[schema.Tag] | None, Query(max_length=32, description="All of them")] = None,
    category: Annotated[Category | None, Query(description="Of one of the criteria")] = None,
    team: Annotated[schema.TeamName | None, Query(description="The team that made it")] = None,
    teacher_model: Annotated[
        schema.ModelName | None,
        Query(description="Of an induced rubric: whose responses it was contrasted for"),
    ] = None,
    rubricator: Annotated[
        schema.ModelName | None,
        Query(
            description="How provenance.rubricator of an induced rubric begins, as in openai/MODEL@"
        ),
    ] = None,
    min_quality: Annotated[
        float | None,
        Query(ge=0, le=1, description=("The least quality; one that is not known is too low")),
    ] = None,
    retired: Annotated[bool | None, Query(description="Only retired ones, or only others")] = None,
    limit: Limit = 20,
    after: Annotated[
        str | None, Query(max_length=64, pattern=NO_NUL, description="The last id of a page")
    ] = None,
) -> schema.RubricList:
    """What the caller's team sees; all that is given narrows it down."""
    if prompt is not None:
        key = prompt_key(messages_of(prompt))
    found, more = await services.store.rubrics.page(
        caller.team,
        Search(
            prompt_key=key,
            origin=origin,
            text=text,
            tags=tag or (),
            category=category,
            team=team,
            teacher_model=teacher_model,
            rubricator=rubricator,
            min_quality=min_quality,
            retired=retired,
            after=after,
            limit=limit,
        ),
    )
    return schema.RubricList(
        data=await shown_rubrics(services, caller, found),
        has_more=more,
        quality=await services.store.rubrics.quality(caller.team, [rubric.id for rubric in found])
        if found
        else {},
    )


@router.get("/rubrics/{rubric_id:id}", summary="Read a rubric")
async def read_rubric(
    rubric_id: str,
    caller: Reader,
    services: UsesServices,
    if_none_match: Annotated[str | None, Header()] = None,
) -> schema.Rubric:
    found = await get_rubric(services, caller, rubric_id)
    text = (await shown_rubrics(services, caller, [found]))[0].model_dump_json()
    etag = f'"{text_key(text)}"'
    if if_none_match is not None and etag in [tag.strip() for tag in if_none_match.split(",")]:
        return Response(status_code=304, headers={"ETag": etag})  # type: ignore[return-value]
    return Response(text, headers={"ETag": etag}, media_type="application/json")  # type: ignore[return-value]


@router.patch("/rubrics/{rubric_id:id}", summary="Share a rubric, tag it, retire it")
async def change_rubric(
    rubric_id: str, payload: schema.RubricPatch, caller: Inducer, services: UsesServices
) -> schema.Rubric:
    """Only the team that made it may. A retired rubric can still be read and named; no group gets it by itself.
    Whether there is a team of a name is not told: any name may stand in ``shared_with``."""
    await get_rubric(services, caller, rubric_id)
    try:
        changed = await services.store.rubrics.change(
            caller.team,
            rubric_id,
            visibility=payload.visibility,
            shared_with=payload.shared_with,
            tags=payload.tags,
            retired=payload.retired,
            actor=actor_of(caller),
        )
    except NotTheirs as error:
        raise Forbidden(
            "this rubric is another team's: only that team may change it",
            code="not_your_rubric",
            param="rubric_id",
        ) from error
    if changed is None:
        raise _missing()
    return (await shown_rubrics(services, caller, [changed]))[0]


async def checked_criteria(given: Sequence[schema.Criterion]) -> tuple[Criterion, ...]:
    """Criteria as the domain keeps them, their checks tried. Raises :class:`Unprocessable`."""
    criteria = wire.to_criteria(given)
    try:
        validate_criteria(criteria)
        for criterion in criteria:
            if criterion.check is not None:
                validate_check(criterion.check)
                await asyncio.sleep(0)  # large patterns take milliseconds to compile
    except InvalidRubric as error:
        raise Unprocessable(str(error), code="invalid_rubric", param="criteria") from error
    except ValueError as error:
        raise Unprocessable(str(error), code="invalid_check", param="criteria") from error
    return criteria


async def get_rubric(services: Services, caller: Caller, rubric_id: str) -> Rubric:
    """The rubric, if the caller's team sees it. PostgreSQL takes no NUL, and no id has one."""
    found = (
        await services.store.rubrics.find(caller.team, rubric_id)
        if "\x00" not in rubric_id
        else None
    )
    if found is None:
        raise _missing()
    return found


async def shown_rubrics(
    services: Services, caller: Caller, rubrics: Sequence[Rubric]
) -> list[schema.Rubric]:
    """Rubrics as a caller may see them. To its own team only is told with whom one is shared, and what names that
    team's runs, texts and other rubrics."""
    own = [rubric.id for rubric in rubrics if rubric.team == caller.team]
    shared = await services.store.rubrics.shared_with(caller.team, own) if own else {}
    return [
        wire.from_rubric(
            replace(rubric, shared_with=shared.get(rubric.id, ()))
            if rubric.team == caller.team
            else replace(rubric, parent_id=None, provenance=_told(rubric))
        )
        for rubric in rubrics
    ]


def _told(rubric: Rubric) -> dict[str, Any]:
    """Of a rubric's provenance what other teams are told: which models made it."""
    return {
        name: value
        for name, value in rubric.provenance.items()
        if name in ("rubricator", "template", "teacher_model")
    }


def _missing() -> NotFound:
    return NotFound("there is no such rubric", code="rubric_not_found", param="rubric_id")
