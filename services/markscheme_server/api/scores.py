"""`POST /v1/scores`: score a training batch, in one JSON answer or one line a group."""

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
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden
from markscheme_server.scoring.group_scores import Tally
from markscheme_server.scoring.verdicts import SLICE_VERDICTS

NDJSON = "application/x-ndjson"
HEARTBEAT_S = 10.0
"""Seconds without a group after which an NDJSON answer gets a heartbeat line."""
GRACE_S = 2.0
"""Seconds beyond the deadline that storing the outcome may take."""
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Scores"])


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
    """Return a reward for each rollout; an unknown reward is null, with a reason.

    Rewards are from 0 to 1; with `clamp` `signed` also below 0, see `reward_range`.

    With `Accept: application/x-ndjson` each group is one line as soon as it is scored, heartbeat
    lines keep the connection alive, and a summary line ends the answer.
    """
    require_induce(caller, payload)
    deadline = services.scores.deadline(deadline_ms)
    # Judging stops at the deadline by itself; only a database that hangs could take longer.
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        warning = await services.budgets.warning(
            caller.team, payload.run.id if payload.run else None
        )
        batch = await services.scores.admit(caller, payload, deadline)
    headers = {BUDGET_WARNING: warning} if warning else {}
    groups = services.scores.score(batch)
    if NDJSON in accept:
        return StreamingResponse(
            _lines(groups, batch.tally),
            media_type=NDJSON,
            # A proxy that buffers would hold the lines back.
            headers=headers | {"X-Accel-Buffering": "no", "Cache-Control": "no-store"},
        )
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        # Groups end in any order; the answer keeps the order of the request.
        by_id = {group.id: group for group in await while_connected(request, _all(groups))}
    whole = schema.ScoreBatch(groups=[], counts=batch.tally.counts(), usage=batch.tally.cost())
    return Response(
        await _dump(whole, [by_id[g.id] for g in payload.groups]),
        headers=headers,
        media_type="application/json",
    )


def require_induce(caller: Caller, options: schema.ScoreOptions) -> None:
    """Raise `Forbidden` if a rubric might be induced and the caller may not do that."""
    if "induce" not in caller.scopes and options.reuse != "frozen":
        raise Forbidden(
            "this key may score with existing rubrics only: send reuse 'frozen', or use a key with "
            "the scope 'induce'",
            code="missing_scope",
            param="reuse",
        )


async def _all(groups: AsyncIterator[schema.GroupScore]) -> list[schema.GroupScore]:
    return [group async for group in groups]


async def _dump(whole: schema.ScoreBatch, groups: list[schema.GroupScore]) -> str:
    """Serialise a batch group by group, so that other requests run in between."""
    # The frame with an empty list, in whose place the groups then go.
    start, end = whole.model_dump_json().split('"groups":[]')
    parts = []
    for group in groups:
        parts.append(await _dump_group(group))
    return f'{start}"groups":[{",".join(parts)}]{end}'


async def _dump_group(group: schema.GroupScore) -> str:
    """Serialise a group; a large one rollout by rollout."""
    await asyncio.sleep(0)
    if sum(len(rollout.verdicts) for rollout in group.rollouts) <= SLICE_VERDICTS:
        return group.model_dump_json()
    start, end = group.model_copy(update={"rollouts": []}).model_dump_json().split('"rollouts":[]')
    parts, verdicts = [], 0
    for rollout in group.rollouts:
        parts.append(rollout.model_dump_json())
        verdicts += len(rollout.verdicts)
        if verdicts > SLICE_VERDICTS:
            verdicts = 0
            await asyncio.sleep(0)
    return f'{start}"rollouts":[{",".join(parts)}]{end}'


async def _lines(groups: AsyncIterator[schema.GroupScore], tally: Tally) -> AsyncIterator[str]:
    """Yield groups with heartbeats in between, and the summary last.

    An answer without its summary was cut off.
    """
    source = aiter(groups)
    pending = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            # Unlike `wait_for`, this does not cancel the group when the time is over.
            done, _ = await asyncio.wait([pending], timeout=HEARTBEAT_S)
            if not done:
                yield _line(schema.Heartbeat())
                continue
            group = pending.result()
            if group is None:
                break
            yield _escape_line_ends(await _dump_group(group))
            pending = asyncio.ensure_future(anext(source, None))
    finally:
        pending.cancel()
    yield _line(schema.ScoreSummary(counts=tally.counts(), usage=tally.cost()))


def _line(value: schema.Wire) -> str:
    """Serialise one NDJSON line.

    U+0085, U+2028 and U+2029 are escaped: some readers take them for line ends.
    """
    return _escape_line_ends(value.model_dump_json())


def _escape_line_ends(line: str) -> str:
    return (line if line.isascii() else line.translate(_LINE_ENDS)) + "\n"
