"""Liveness, readiness and metrics, outside `/v1` and without a key.

None of them asks the judge: its outage must not take every replica out of service.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server import metrics
from markscheme_server.api.drain import Drain
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import UsesServices
from markscheme_server.errors import Unavailable
from markscheme_server.store.engine.database import is_disk_full

router = APIRouter(tags=["Operations"])


@router.get("/", include_in_schema=False)
async def show_pages() -> RedirectResponse:
    """Lead a browser to the pages, also below a proxy's prefix."""
    return RedirectResponse("pages/")


@router.get("/healthz", summary="Check that the process answers")
async def check_health() -> dict[str, str]:
    """Answer without touching anything else."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Check that requests can be served",
    responses={503: RESPONSES[503]},
)
async def check_readiness(request: Request, services: UsesServices) -> dict[str, str]:
    """Check that the database answers and has disk space, and that no shutdown has begun."""
    drain: Drain = request.app.state.drain
    if drain.draining:
        raise Unavailable(
            "this process is shutting down; ask another", code="draining", retry_after_s=1
        )
    try:
        await services.check_ready()
    except (SQLAlchemyError, TimeoutError) as error:
        why = (
            "the disk of the database is full"
            if is_disk_full(error)
            else "the database does not answer"
        )
        raise Unavailable(why, code="database", retry_after_s=1) from error
    return {"status": "ready", "judge": services.judge_kind}


# Not async: reading the files of all workers takes milliseconds, so it runs in a thread.
@router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics() -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)
