"""``POST /v1/scores``: a whole training batch, as one JSON answer or a line a group as it is done."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import BUDGET_WARNING, WARNS, DeadlineMs, Scorer, UsesServices
from markscheme_server.errors import Forbidden
from markscheme_server.scoring.scores import Tally
from markscheme_server.scoring.verdicts import STRIDE

NDJSON = "application/x-ndjson"
GRACE_S = 2.0
"""What storing the outcome may take beyond the deadline."""
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.post(
    "/scores",
    response_model=schema.ScoreBatch,
    summary="Score a batch of rollouts",
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}, "headers": WARNS}},
)
async def score(
    payload: schema.ScoreRequest,
    caller: Scorer,
    services: UsesServices,
    request: Request,
    accept: Annotated[str, Header()] = "application/json",
    deadline_ms: DeadlineMs = None,
) -> Response:
    """Rewards that are not known are null with a reason. With ``Accept: application/x-ndjson`` each group is a
    line as soon as it is done, heartbeat lines keep the connection alive, and a summary line ends the answer."""
    if "induce" not in caller.scopes and payload.reuse != "frozen":
        raise Forbidden(
            "this key may not make rubrics, only score by those there are: send reuse 'frozen', or use a "
            "key with the scope 'induce'",
            code="missing_scope",
            param="reuse",
        )
    deadline = services.scores.deadline(deadline_ms)
    # Judging ends at the deadline by itself; what could still hold us is a silent database.
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        warning = await services.budgets.warning(
            caller.team, payload.run.id if payload.run else None
        )
        batch = await services.scores.admit(caller, payload, deadline)
    headers = {BUDGET_WARNING: warning} if warning else {}
    groups = services.scores.score(batch)
    if NDJSON in accept:
        return StreamingResponse(
            _lines(groups, batch.tally, services.settings.heartbeat_s),
            media_type=NDJSON,
            headers=headers | {"X-Accel-Buffering": "no", "Cache-Control": "no-store"},
        )
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        by_id = {group.id: group for group in await while_connected(request, _all(groups))}
    whole = schema.ScoreBatch(groups=[], counts=batch.tally.counts(), usage=batch.tally.cost())
    return Response(
        await _dumped(whole, [by_id[g.id] for g in payload.groups]),
        headers=headers,
        media_type="application/json",
    )


async def _all(groups: AsyncIterator[schema.GroupScore]) -> list[schema.GroupScore]:
    return [group async for group in groups]


async def _dumped(whole: schema.ScoreBatch, groups: list[schema.GroupScore]) -> str:
    """The JSON of a batch with these groups, made group by group so that others come in between."""
    start, end = whole.model_dump_json().split('"groups":[]')
    parts = []
    for group in groups:
        parts.append(await _dumped_group(group))
    return f'{start}"groups":[{",".join(parts)}]{end}'


async def _dumped_group(group: schema.GroupScore) -> str:
    """The JSON of a group, of a large one rollout by rollout."""
    await asyncio.sleep(0)
    if sum(len(rollout.verdicts) for rollout in group.rollouts) <= STRIDE:
        return group.model_dump_json()
    start, end = group.model_copy(update={"rollouts": []}).model_dump_json().split('"rollouts":[]')
    parts, verdicts = [], 0
    for rollout in group.rollouts:
        parts.append(rollout.model_dump_json())
        verdicts += len(rollout.verdicts)
        if verdicts > STRIDE:
            verdicts = 0
            await asyncio.sleep(0)
    return f'{start}"rollouts":[{",".join(parts)}]{end}'


async def _lines(
    groups: AsyncIterator[schema.GroupScore], tally: Tally, heartbeat_s: float
) -> AsyncIterator[str]:
    """Groups, heartbeats in between, the summary last. An answer without its summary is a broken one."""
    source = aiter(groups)
    pending = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait([pending], timeout=heartbeat_s)
            if not done:
                yield _line(schema.Heartbeat())
                continue
            group = pending.result()
            if group is None:
                break
            yield _escaped(await _dumped_group(group))
            pending = asyncio.ensure_future(anext(source, None))
    finally:
        pending.cancel()
    yield _line(schema.ScoreSummary(counts=tally.counts(), usage=tally.cost()))


def _line(value: schema.Wire) -> str:
    """One NDJSON line. Characters that some readers take for line ends are escaped, so that none splits it there."""
    return _escaped(value.model_dump_json())


def _escaped(line: str) -> str:
    return (line if line.isascii() else line.translate(_LINE_ENDS)) + "\n"
