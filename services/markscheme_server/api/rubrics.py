"""``/v1/rubrics``: bring, induce, read and list rubrics."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from markscheme import schema
from markscheme.vocabulary import RubricOrigin
from markscheme_server.api import idempotency
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES, judge_error
from markscheme_server.api.idempotency import TakesKey
from markscheme_server.api.services import NO_NUL, TEAM, DeadlineMs, PromptKey, PromptText, UsesServices
from markscheme_server.domain.deadline import Patience
from markscheme_server.domain.fingerprint import messages_of, prompt_key
from markscheme_server.domain.rubric import InvalidRubric, validate_criteria
from markscheme_server.errors import NotFound, Unprocessable
from markscheme_server.grading import wire
from markscheme_server.grading.rubrics import Wanted
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.judge.base import Response as StudentText
from markscheme_server.judge.builtin.checks import validate_check

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.post("/rubrics", status_code=201, response_model=schema.Rubric, summary="Bring your own rubric",
             responses=idempotency.RESPONSES)
async def create_rubric(payload: schema.RubricCreate, services: UsesServices, once: TakesKey) -> Response:
    criteria = wire.to_criteria(payload.criteria)
    try:
        validate_criteria(criteria)
        for c in criteria:
            if c.check is not None:
                validate_check(c.check)
    except InvalidRubric as error:
        raise Unprocessable(str(error), code="invalid_rubric", param="criteria") from error
    except ValueError as error:
        raise Unprocessable(str(error), code="invalid_check", param="criteria") from error

    async def save() -> schema.Rubric:
        return wire.from_rubric(await services.store.rubrics.save(
            team=TEAM, prompt=wire.messages(payload.prompt), criteria=criteria, origin="imported", tags=payload.tags,
            provenance={}))

    return await once.answer(payload, save, status=201)


@router.post("/rubrics:induce", response_model=schema.Rubric, responses=idempotency.RESPONSES,
             summary="Induce a rubric by contrasting teacher and student responses")
async def induce_rubric(payload: schema.InduceRequest, services: UsesServices, once: TakesKey, request: Request,
                        deadline_ms: DeadlineMs = None) -> Response:
    deadline = services.scores.deadline(deadline_ms)
    wanted = Wanted(
        TEAM, tuple(wire.messages(payload.prompt)),
        tuple(payload.teacher_responses) if payload.teacher_responses is not None else None,
        tuple(StudentText(s) if isinstance(s, str) else StudentText(s.text, s.truncated)
              for s in payload.student_responses),
        services.judges.get(payload.judge, "rubricator"), payload.reuse, payload.run, tuple(payload.tags))

    async def induce() -> schema.Rubric:
        try:
            return wire.from_rubric((await services.rubrics.resolve(wanted, Patience(deadline))).rubric)
        except JudgeFailure as failure:
            raise judge_error(failure) from failure

    return await while_connected(request, once.answer(payload, induce, status=200))


@router.get("/rubrics", summary="List rubrics, newest first")
async def list_rubrics(
    services: UsesServices,
    prompt: PromptText = None,
    key: PromptKey = None,
    origin: RubricOrigin | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, pattern=NO_NUL, description="The last id of a page")] = None,
) -> schema.RubricList:
    if prompt is not None:
        key = prompt_key(messages_of(prompt))
    found, more = await services.store.rubrics.page(TEAM, key=key, origin=origin, after=after, limit=limit)
    return schema.RubricList(data=[wire.from_rubric(r) for r in found], has_more=more)


@router.get("/rubrics/{rubric_id}", summary="Read a rubric")
async def read_rubric(rubric_id: str, services: UsesServices, response: Response,
                      if_none_match: Annotated[str | None, Header()] = None) -> schema.Rubric:
    rubric = await services.store.rubrics.find(TEAM, rubric_id) if "\x00" not in rubric_id else None
    if rubric is None:
        raise NotFound("there is no such rubric", code="rubric_not_found", param="rubric_id")
    etag = f'"{rubric.content_hash}"'
    if if_none_match is not None and etag in [tag.strip() for tag in if_none_match.split(",")]:
        return Response(status_code=304, headers={"ETag": etag})  # type: ignore[return-value]
    response.headers["ETag"] = etag
    return wire.from_rubric(rubric)
