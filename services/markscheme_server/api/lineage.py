"""`/v1/rubrics/{id}/lineage`: the history of a rubric as a graph."""

from fastapi import APIRouter

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Reader, UsesServices

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Rubrics"])


@router.get("/rubrics/{rubric_id:id}/lineage", summary="Get the lineage of a rubric")
async def get_lineage(rubric_id: str, caller: Reader, services: UsesServices) -> schema.Lineage:
    """Return what a rubric was made from and what it was used for.

    The graph holds parents, later versions and forks, the responses it was contrasted from, what
    made it, and the runs and verdicts of the caller's team. Of other teams' use it holds counts
    only. An edge is returned only to a caller who sees both its ends.
    """
    return await services.library.lineage(caller, rubric_id)
