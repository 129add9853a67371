"""Liveness, readiness and figures: what orchestrators and Prometheus ask, outside ``/v1`` and without a key.

None of them asks the judge: its outage must not take every replica out.
"""

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server import metrics
from markscheme_server.api.drain import Drain
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import UsesServices
from markscheme_server.errors import Unavailable
from markscheme_server.store.engine.database import is_full

router = APIRouter()


@router.get("/healthz", summary="The process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="The database answers and has room too, and the service is not about to end",
    responses={503: RESPONSES[503]},
)
async def readyz(request: Request, services: UsesServices) -> dict[str, str]:
    drain: Drain = request.app.state.drain
    if drain.draining:
        raise Unavailable(
            "this process is shutting down; ask another", code="draining", retry_after_s=1
        )
    try:
        await services.store.ready()
    except (SQLAlchemyError, TimeoutError) as error:
        why = (
            "the disk of the database is full" if is_full(error) else "the database does not answer"
        )
        raise Unavailable(why, code="database", retry_after_s=1) from error
    return {"status": "ready", "judge": services.settings.judge_kind}


# Not async: reading every worker's file takes milliseconds, and those belong to a thread, not to the event loop.
@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def exposition() -> Response:
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)
