"""`POST /v1/rollouts`: score a rollout with its group, whose rollouts arrive one request each."""

import asyncio

from fastapi import APIRouter, Request, Response

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.scores import GRACE_S, require_induce
from markscheme_server.api.services import BUDGET_WARNING, WARNS, DeadlineMs, Scorer, UsesServices

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Scores"])


@router.post(
    "/rollouts",
    summary="Score a rollout with the others of its group",
    responses={
        200: {"headers": WARNS},
        409: {
            "model": schema.ErrorBody,
            "description": "The rollout contradicts its group: other fields, another rollout with "
            "this id, or no room",
        },
    },
)
async def score_rollout(
    payload: schema.RolloutRequest,
    caller: Scorer,
    services: UsesServices,
    request: Request,
    response: Response,
    deadline_ms: DeadlineMs = None,
) -> schema.ScoredRollout:
    """Answer when the group is whole, or with what is there `group.wait_s` after its first rollout.

    All rollouts of a group are scored together, by one rubric, whichever processes they come to. A
    rollout that comes later is scored alone by that rubric. The same rollout may be sent again.
    """
    require_induce(caller, payload)
    deadline = services.scores.deadline(deadline_ms)
    # Waiting and judging stop at the deadline by themselves; a database that hangs could take
    # longer.
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        warning = await services.budgets.warning(
            caller.team, payload.run.id if payload.run else None
        )
        if warning:
            response.headers[BUDGET_WARNING] = warning
        return await while_connected(request, services.rollouts.score(caller, payload, deadline))
