"""``/v1/rubrics``: bring, induce, read, list and share rubrics."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from markscheme import schema
from markscheme.vocabulary import Category, RubricOrigin
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
    UsesServices,
)
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import messages_of, prompt_key, text_key
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.rubrics import Search

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
    draft = await services.library.draft_create(payload)
    return await once.answer(payload, lambda: services.library.save(caller, draft), status=201)


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
    draft = await services.library.draft_fork(caller, rubric_id, payload)
    return await once.answer(payload, lambda: services.library.save(caller, draft), status=201)


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
    context = CallContext(services.scores.deadline(deadline_ms), team=caller.team)
    draft = services.library.draft_induction(caller, payload)

    async def induce() -> schema.Rubric:
        try:
            return await services.library.induce(caller, draft, context)
        except JudgeFailure as failure:
            raise judge_error(failure) from failure

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
    return await services.library.list_rubrics(
        caller,
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


@router.get("/rubrics/{rubric_id:id}", summary="Read a rubric")
async def read_rubric(
    rubric_id: str,
    caller: Reader,
    services: UsesServices,
    if_none_match: Annotated[str | None, Header()] = None,
) -> schema.Rubric:
    text = (await services.library.get(caller, rubric_id)).model_dump_json()
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
    return await services.library.change(caller, rubric_id, payload)
