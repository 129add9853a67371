"""Liveness and readiness. Neither asks the judge: its outage must not take every replica out."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.api.services import UsesServices
from markscheme_server.errors import Unavailable

router = APIRouter()


@router.get("/healthz", summary="The process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="The database answers too")
async def readyz(services: UsesServices) -> dict[str, str]:
    try:
        await services.store.database.ping()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise Unavailable("the database does not answer", code="database", retry_after_s=1) from error
    return {"status": "ready", "judge": services.settings.judge_kind}
