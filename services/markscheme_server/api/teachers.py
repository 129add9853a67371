"""``/v1/teacher-responses``: fill, read and sample into the teacher bank."""

import asyncio

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
from markscheme_server.store.teachers import TeacherResponse

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.post("/teacher-responses", summary="Put teacher responses into the bank")
async def save(
    payload: schema.TeacherResponsesCreate, caller: Inducer, services: UsesServices
) -> schema.TeacherBankChange:
    added = sum(
        await asyncio.gather(
            *(
                services.store.teachers.save(
                    caller.team, wire.messages(entry.prompt), entry.responses, entry.model
                )
                for entry in payload.entries
            )
        )
    )
    return schema.TeacherBankChange(
        added=added, duplicates=sum(len(e.responses) for e in payload.entries) - added
    )


@router.get("/teacher-responses", summary="Read what the bank holds for a prompt")
async def read(
    caller: Reader, services: UsesServices, prompt: PromptText = None, key: PromptKey = None
) -> schema.TeacherResponseList:
    if (prompt is None) == (key is None):
        raise Unprocessable(
            "give either prompt or prompt_key", code="invalid_request", param="prompt"
        )
    chosen = key or prompt_key(messages_of(prompt or ""))
    found = await services.store.teachers.find(caller.team, chosen)
    return schema.TeacherResponseList(prompt_key=chosen, data=_shown(found))


@router.post(
    "/teacher-responses:sample", summary="Have the teacher asked until the bank holds enough"
)
async def sample(
    payload: schema.TeachRequest,
    caller: Inducer,
    services: UsesServices,
    request: Request,
    deadline_ms: DeadlineMs = None,
) -> schema.TeachResult:
    messages = tuple(wire.messages(payload.prompt))
    context = CallContext(services.scores.deadline(deadline_ms), team=caller.team)
    try:
        taught = await while_connected(
            request, services.teachers.ensure(caller.team, messages, payload.count, context)
        )
    except JudgeFailure as failure:
        raise judge_error(failure) from failure
    return schema.TeachResult(
        prompt_key=prompt_key(messages),
        data=_shown(taught.bank),
        added=taught.added,
        duplicates=taught.duplicates,
        usage=schema.Usage(
            judge_calls=taught.usage.calls,
            prompt_tokens=taught.usage.prompt_tokens,
            completion_tokens=taught.usage.completion_tokens,
            cached_verdicts=0,
            cached_tokens=taught.usage.cached_tokens,
            cost_usd=taught.usage.cost_usd,
        ),
    )


def _shown(bank: list[TeacherResponse]) -> list[schema.TeacherResponse]:
    return [
        schema.TeacherResponse(text=kept.text, model=kept.model, created_at=kept.created_at)
        for kept in bank
    ]
