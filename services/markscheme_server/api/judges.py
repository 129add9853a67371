"""`/v1/judges`: which judges there are, what their tokens cost, and whether they can be trusted."""

from fastapi import APIRouter

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Reader, UsesServices

router = APIRouter(
    prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Usage and budgets"]
)


@router.get("/judges", summary="List the judges and their prices")
async def list_judges(_caller: Reader, services: UsesServices) -> schema.JudgeList:
    """List the judges that a request may name, with the roles that are theirs by default."""
    return services.judges


@router.get("/judges/report", summary="Get calls, failures and agreement of judges")
async def get_judge_reports(caller: Reader, services: UsesServices) -> schema.JudgeReports:
    """Return what the caller's team met of judges in the last 30 days.

    That is calls, failures, cost, how far a second judge agrees, how often a judge that was asked
    again said something else, and the groups in which two judges differ most.
    """
    return await services.judge_reports.judges(caller)
