"""`/v1/usage`, budgets and the audit trail: what was spent, what may be spent, who did what."""

from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BeforeValidator

from markscheme import schema
from markscheme.vocabulary import USAGE_KEYS, UsageKey
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import (
    NO_NUL,
    Administrator,
    After,
    Limit,
    Reader,
    UsesServices,
)
from markscheme_server.errors import Unprocessable

router = APIRouter(
    prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Usage and budgets"]
)


def _parse_day(text: str) -> date:
    """Read YYYY-MM-DD and nothing else: pydantic would also take seconds since 1970."""
    if len(text) != len("YYYY-MM-DD"):
        raise ValueError("a day is written as YYYY-MM-DD")
    return datetime.strptime(text, "%Y-%m-%d").date()


Day = Annotated[date, BeforeValidator(_parse_day)]
TeamPath = Annotated[schema.TeamName, Path()]
RunQuery = Annotated[
    schema.Identifier | None, Query(description="The budget of this run, not of the whole team")
]


@router.get("/usage", summary="Get what judging cost and what reuse saved")
async def get_usage(
    caller: Reader,
    services: UsesServices,
    group_by: Annotated[
        str,
        Query(max_length=100, description=f"One or more, by commas: {', '.join(USAGE_KEYS)}"),
    ] = "team",
    since: Annotated[Day | None, Query(description="First day (UTC)")] = None,
    until: Annotated[Day | None, Query(description="Day after the last (UTC)")] = None,
    team: Annotated[
        schema.TeamName | None,
        Query(description="One team. Default: your own; for the scope `admin`, all"),
    ] = None,
) -> schema.UsageReport:
    """Add up calls, tokens and cost in USD.

    A team sees its own usage; the scope `admin` sees every team's.
    """
    keys = _parse_keys(group_by)
    return await services.usage.report(caller, keys, team=team, since=since, until=until)


@router.put("/teams/{name:id}/budget", summary="Set the budget of a team or of one of its runs")
async def set_budget(
    name: TeamPath,
    payload: schema.BudgetPut,
    caller: Administrator,
    services: UsesServices,
    run: RunQuery = None,
) -> schema.Budget:
    """Set what may be spent on judge calls.

    Every worker applies it within a second. What was spent in the current window counts.
    """
    return await services.usage.put_budget(caller, name, run, payload)


@router.get("/teams/{name:id}/budget", summary="Get a budget and what was spent of it")
async def get_budget(
    name: TeamPath, caller: Reader, services: UsesServices, run: RunQuery = None
) -> schema.Budget:
    """Return a budget of the caller's team or, with the scope `admin`, of any team."""
    return await services.usage.get_budget(caller, name, run)


@router.delete("/teams/{name:id}/budget", status_code=204, summary="Remove a budget")
async def remove_budget(
    name: TeamPath, caller: Administrator, services: UsesServices, run: RunQuery = None
) -> Response:
    """Remove a budget; every worker applies it within a second."""
    await services.usage.remove_budget(caller, name, run)
    return Response(status_code=204)


@router.get("/audit", summary="List audit entries, newest first")
async def list_audit_entries(
    _caller: Administrator,
    services: UsesServices,
    team: Annotated[schema.TeamName | None, Query(description="The team that acted")] = None,
    subject: Annotated[
        str | None,
        Query(max_length=240, pattern=NO_NUL, description="rubric:ID, key:PREFIX or team:NAME"),
    ] = None,
    action: Annotated[
        str | None, Query(max_length=40, pattern=NO_NUL, description="Such as rubric.changed")
    ] = None,
    limit: Limit = 20,
    after: After = None,
) -> schema.AuditList:
    """List who did what to which rubric, key, team or budget."""
    return await services.usage.audit(
        team=team, subject=subject, action=action, after=after, limit=limit
    )


def _parse_keys(text: str) -> list[UsageKey]:
    stated = [part.strip() for part in text.split(",") if part.strip()]
    keys = [key for part in dict.fromkeys(stated) for key in USAGE_KEYS if key == part]
    if len(keys) != len(stated):
        raise Unprocessable(
            f"group_by takes each of {', '.join(USAGE_KEYS)} at most once, separated by commas",
            code="invalid_value",
            param="group_by",
        )
    return keys
