"""`/v1/rubrics`: create, induce, read, list and share rubrics."""

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
    After,
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

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Rubrics"])


@router.post(
    "/rubrics",
    status_code=201,
    response_model=schema.Rubric,
    summary="Create a rubric from your own criteria",
    responses=idempotency.RESPONSES,
)
async def create_rubric(
    payload: schema.RubricCreate, caller: Inducer, services: UsesServices, once: TakesKey
) -> Response:
    """Create a private rubric of the caller's team.

    When the team's newest rubric for the prompt has the same criteria, that one is returned.
    """
    draft = await services.library.draft_create(payload)
    return await once.answer(payload, lambda: services.library.save(caller, draft), status=201)


@router.post(
    "/rubrics/{rubric_id:id}:fork",
    status_code=201,
    response_model=schema.Rubric,
    responses=idempotency.RESPONSES,
    summary="Create a new version of a rubric, or a copy of another team's",
)
async def fork_rubric(
    rubric_id: str,
    payload: schema.RubricFork,
    caller: Inducer,
    services: UsesServices,
    once: TakesKey,
) -> Response:
    """Create a private rubric of the caller's team whose parent is the given one.

    When the team's newest rubric for the prompt has these criteria, that one is returned
    unchanged. An unchanged copy keeps the provenance of its source; with other criteria its
    author is the caller's team.
    """
    draft = await services.library.draft_fork(caller, rubric_id, payload)
    return await once.answer(payload, lambda: services.library.save(caller, draft), status=201)


@router.post(
    "/rubrics:induce",
    response_model=schema.Rubric,
    responses=idempotency.RESPONSES | {200: {"headers": WARNS}},
    summary="Induce a rubric from teacher and student responses",
)
async def induce_rubric(
    payload: schema.InduceRequest,
    caller: Inducer,
    services: UsesServices,
    once: TakesKey,
    request: Request,
    deadline_ms: DeadlineMs = None,
) -> Response:
    """Have the rubricator contrast teacher responses with student responses.

    Without `teacher_responses` the team's teacher bank is used. `reuse` decides whether a stored
    rubric is returned instead.
    """
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


@router.get("/rubrics", summary="List rubrics, newest first")
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
            description="Words that all occur in the prompt or the criteria, in any inflection",
        ),
    ] = None,
    tag: Annotated[
        list[schema.Tag] | None, Query(max_length=32, description="All of these tags")
    ] = None,
    category: Annotated[
        Category | None, Query(description="Category of at least one criterion")
    ] = None,
    team: Annotated[schema.TeamName | None, Query(description="The team that made it")] = None,
    teacher_model: Annotated[
        schema.ModelName | None,
        Query(description="Induced rubrics: the model whose responses it was contrasted with"),
    ] = None,
    rubricator: Annotated[
        schema.ModelName | None,
        Query(description="Induced rubrics: prefix of provenance.rubricator, as in openai/MODEL@"),
    ] = None,
    min_quality: Annotated[
        float | None,
        Query(ge=0, le=1, description="Minimum quality; excludes rubrics of unknown quality"),
    ] = None,
    retired: Annotated[
        bool | None, Query(description="true: only retired ones; false: only others")
    ] = None,
    limit: Limit = 20,
    after: After = None,
) -> schema.RubricList:
    """List the rubrics that the caller's team sees. All filters must match.

    `quality` is the share of a rubric's scored groups in which rollouts got different rewards.
    """
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


@router.get("/rubrics/{rubric_id:id}", summary="Get a rubric")
async def get_rubric(
    rubric_id: str,
    caller: Reader,
    services: UsesServices,
    if_none_match: Annotated[str | None, Header()] = None,
) -> schema.Rubric:
    """Return a rubric that the caller's team sees, with an ETag."""
    text = (await services.library.get(caller, rubric_id)).model_dump_json()
    etag = f'"{text_key(text)}"'
    if if_none_match is not None and etag in [tag.strip() for tag in if_none_match.split(",")]:
        return Response(status_code=304, headers={"ETag": etag})  # type: ignore[return-value]
    return Response(text, headers={"ETag": etag}, media_type="application/json")  # type: ignore[return-value]


@router.patch("/rubrics/{rubric_id:id}", summary="Share, tag or retire a rubric")
async def change_rubric(
    rubric_id: str, payload: schema.RubricPatch, caller: Inducer, services: UsesServices
) -> schema.Rubric:
    """Change a rubric of the caller's own team.

    A retired rubric can still be read and named, but no group gets it by itself. `shared_with`
    takes any team name, so that the answer does not reveal which teams exist.
    """
    return await services.library.change(caller, rubric_id, payload)
