"""`/v1/replays`: score the stored rollouts of a run again, and compare."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from markscheme import schema
from markscheme_server.api import idempotency
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.idempotency import TakesKey
from markscheme_server.api.services import After, Limit, Reader, Scorer, UsesServices

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Replays"])

OfRun = Annotated[schema.Identifier | None, Query(description="Only those of this run")]


@router.get("/replays/estimate", summary="Estimate what a replay takes")
async def estimate_replay(
    asked: Annotated[schema.ReplayRequest, Query()], caller: Reader, services: UsesServices
) -> schema.ReplayEstimate:
    """Return calls, tokens and the highest cost of a replay; nothing is begun.

    Verdicts that are stored already are not asked for again and cost nothing.
    """
    return await services.replays.estimate(caller, asked)


@router.post(
    "/replays",
    status_code=201,
    response_model=schema.Replay,
    responses=idempotency.RESPONSES,
    summary="Score stored rollouts of a run again",
)
async def create_replay(
    payload: schema.ReplayRequest, caller: Scorer, services: UsesServices, once: TakesKey
) -> Response:
    """Begin a replay under another rubric, judge, view or mode, and return at once.

    It goes on when this service restarts. Its scores change nothing of the run: no reward, step,
    finding or quality. A spent budget of the team pauses it.
    """
    return await once.answer(payload, lambda: services.replays.begin(caller, payload), status=201)


@router.get("/replays", summary="List replays, the newest first")
async def list_replays(
    caller: Reader,
    services: UsesServices,
    run_id: OfRun = None,
    limit: Limit = 20,
    after: After = None,
) -> schema.ReplayList:
    """List the replays of the caller's team."""
    return await services.replays.replays(caller, run_id=run_id, limit=limit, after=after)


@router.get("/replays/{replay_id:id}", summary="Get a replay and its comparison")
async def get_replay(replay_id: str, caller: Reader, services: UsesServices) -> schema.ReplayDetail:
    """Return how far a replay is, and how its rewards differ from the run's so far."""
    return await services.replays.replay(caller, replay_id)


@router.post("/replays/{replay_id:id}:cancel", summary="Cancel a replay")
async def cancel_replay(replay_id: str, caller: Scorer, services: UsesServices) -> schema.Replay:
    """Begin no further group; those that are being judged end. What is done stays."""
    return await services.replays.cancel(caller, replay_id)
