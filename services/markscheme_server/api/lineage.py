"""``/v1/rubrics/{id}/lineage``: the history of a rubric as a graph."""

from fastapi import APIRouter

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Reader, UsesServices

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.get(
    "/rubrics/{rubric_id:id}/lineage", summary="What a rubric was made from, and what came of it"
)
async def read_lineage(rubric_id: str, caller: Reader, services: UsesServices) -> schema.Lineage:
    """Parents, later versions and forks; the responses it was contrasted from, and what made it; the caller's team's
    runs and verdicts; of other teams' use, how much there was."""
    return await services.library.lineage(caller, rubric_id)
