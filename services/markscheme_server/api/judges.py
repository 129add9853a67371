"""`/v1/judges`: which judges there are, and what their tokens cost."""

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
