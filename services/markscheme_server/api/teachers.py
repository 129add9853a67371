"""`/v1/teacher-responses`: the teacher bank, which holds responses of the model to distill."""

from fastapi import APIRouter, Request

from markscheme import schema
from markscheme_server import wire
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES, judge_error
from markscheme_server.api.services import (
    DeadlineMs,
    Inducer,
    PromptKey,
    PromptText,
    Reader,
    UsesServices,
)
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import messages_of, prompt_key
from markscheme_server.errors import Unprocessable
from markscheme_server.judge.base import JudgeFailure

router = APIRouter(
    prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Teacher bank"]
)


@router.post("/teacher-responses", summary="Add teacher responses to the bank")
async def save_teacher_responses(
    payload: schema.TeacherResponsesCreate, caller: Inducer, services: UsesServices
) -> schema.TeacherBankChange:
    """Store responses by prompt. Responses that the bank has already are counted as duplicates."""
    added = await services.teachers.add(caller.team, payload.entries)
    return schema.TeacherBankChange(
        added=added, duplicates=sum(len(e.responses) for e in payload.entries) - added
    )


@router.get("/teacher-responses", summary="List the teacher responses to a prompt")
async def list_teacher_responses(
    caller: Reader, services: UsesServices, prompt: PromptText = None, key: PromptKey = None
) -> schema.TeacherResponseList:
    """Return what the bank of the caller's team holds for a prompt or a prompt's key."""
    if (prompt is None) == (key is None):
        raise Unprocessable(
            "give either prompt or prompt_key", code="invalid_request", param="prompt"
        )
    key = key or prompt_key(messages_of(prompt or ""))
    found = await services.teachers.list_responses(caller.team, key)
    return schema.TeacherResponseList(
        prompt_key=key, data=[wire.from_teacher_response(each) for each in found]
    )


@router.post("/teacher-responses:sample", summary="Sample teacher responses into the bank")
async def sample_teacher_responses(
    payload: schema.TeachRequest,
    caller: Inducer,
    services: UsesServices,
    request: Request,
    deadline_ms: DeadlineMs = None,
) -> schema.TeachResult:
    """Ask the teacher until the bank holds `count` responses to the prompt."""
    messages = wire.text_messages(payload.prompt)
    context = CallContext(services.scores.deadline(deadline_ms), team=caller.team)
    try:
        sampled = await while_connected(
            request, services.teachers.ensure(caller.team, messages, payload.count, context)
        )
    except JudgeFailure as failure:
        raise judge_error(failure) from failure
    return schema.TeachResult(
        prompt_key=prompt_key(messages),
        data=[wire.from_teacher_response(each) for each in sampled.bank],
        added=sampled.added,
        duplicates=sampled.duplicates,
        usage=wire.from_usage(context.usage),
    )
