"""``/v1/usage``, budgets and the audit trail: what judging cost, what it may cost, who did what."""

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
    Limit,
    Reader,
    Services,
    UsesServices,
)
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden, NotFound, Unprocessable
from markscheme_server.store.audit import actor_of
from markscheme_server.store.budgets import Budget, UnknownTeam
from markscheme_server.store.usage import Bucket

TEAM = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def _day(text: str) -> date:
    """Nothing but YYYY-MM-DD: pydantic would also take seconds since 1970."""
    if len(text) != len("YYYY-MM-DD"):
        raise ValueError("a day is written as YYYY-MM-DD")
    return datetime.strptime(text, "%Y-%m-%d").date()


router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)
Day = Annotated[date, BeforeValidator(_day)]
TeamPath = Annotated[str, Path(pattern=TEAM)]
TeamQuery = Annotated[
    str | None,
    Query(pattern=TEAM, description="One team's; default: your own, an administrator's all"),
]
RunQuery = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The budget of this run, instead of that on everything",
    ),
]


@router.get("/usage", summary="What judging cost and what re-use saved")
async def usage(
    caller: Reader,
    services: UsesServices,
    group_by: Annotated[
        str, Query(max_length=100, description=f"Of {', '.join(USAGE_KEYS)}; with commas")
    ] = "team",
    since: Annotated[Day | None, Query(description="From this day on (UTC)")] = None,
    until: Annotated[Day | None, Query(description="Up to the day before this one (UTC)")] = None,
    team: TeamQuery = None,
) -> schema.UsageReport:
    """A team sees its own; the scope ``admin`` sees every team's."""
    keys = _keys(group_by)
    if "admin" not in caller.scopes:
        if team not in (None, caller.team):
            raise Forbidden(
                "this key sees its own team's usage; another's takes the scope 'admin'",
                code="missing_scope",
                param="team",
            )
        team = caller.team
    found, total, more = await services.store.usage.add_up(team, keys, since=since, until=until)
    return schema.UsageReport(
        since=since,
        until=until,
        data=[_bucket(each) for each in found],
        total=_bucket(total),
        truncated=more,
    )


@router.put("/teams/{name:id}/budget", summary="Say what a team, or a run of it, may spend")
async def put_budget(
    name: TeamPath,
    payload: schema.BudgetPut,
    caller: Administrator,
    services: UsesServices,
    run: RunQuery = None,
) -> schema.Budget:
    """It binds within a second, at every worker. What was spent in the window so far counts."""
    try:
        made = await services.store.budgets.put(
            name,
            run,
            hard_usd=payload.hard_usd,
            soft_usd=payload.soft_usd,
            window=payload.window_of(run),
            actor=actor_of(caller),
        )
    except UnknownTeam as error:
        raise NotFound(f"there is no team {name!r}", code="team_not_found", param="name") from error
    return _shown(services, made)


@router.get("/teams/{name:id}/budget", summary="Read a budget and what was spent of it")
async def read_budget(
    name: TeamPath, caller: Reader, services: UsesServices, run: RunQuery = None
) -> schema.Budget:
    """A team reads its own; the scope ``admin`` reads every team's."""
    budgets = await services.store.budgets.find(name) if _may_see(caller, name) else []
    found = next((budget for budget in budgets if budget.run_id == run), None)
    if found is None:
        raise _no_budget()
    return _shown(services, found)


@router.delete("/teams/{name:id}/budget", status_code=204, summary="Take a budget away")
async def remove_budget(
    name: TeamPath, caller: Administrator, services: UsesServices, run: RunQuery = None
) -> Response:
    if not await services.store.budgets.remove(name, run, actor_of(caller)):
        raise _no_budget()
    return Response(status_code=204)


@router.get("/audit", summary="Who did what to which rubric, key, team or budget, newest first")
async def audit(
    _caller: Administrator,
    services: UsesServices,
    team: Annotated[str | None, Query(pattern=TEAM, description="Of this team's doing")] = None,
    subject: Annotated[
        str | None,
        Query(max_length=240, pattern=NO_NUL, description="rubric:ID, key:PREFIX or team:NAME"),
    ] = None,
    action: Annotated[
        str | None, Query(max_length=40, pattern=NO_NUL, description="As in rubric.changed")
    ] = None,
    limit: Limit = 20,
    after: Annotated[
        str | None, Query(max_length=64, pattern=NO_NUL, description="The last id of a page")
    ] = None,
) -> schema.AuditList:
    found, more = await services.store.audit.page(
        team=team, subject=subject, action=action, after=after, limit=limit
    )
    return schema.AuditList(
        has_more=more,
        data=[
            schema.AuditEntry(
                id=entry.id,
                team=entry.team,
                key=entry.key,
                action=entry.action,
                subject=entry.subject,
                detail=dict(entry.detail),
                created_at=entry.created_at,
            )
            for entry in found
        ],
    )


def _keys(text: str) -> list[UsageKey]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    keys = [key for part in dict.fromkeys(chosen) for key in USAGE_KEYS if key == part]
    if len(keys) != len(chosen):
        raise Unprocessable(
            f"group_by takes each of {', '.join(USAGE_KEYS)} once at most, separated by commas",
            code="invalid_value",
            param="group_by",
        )
    return keys


def _bucket(bucket: Bucket) -> schema.UsageBucket:
    group = {
        key: date.fromisoformat(value) if key == "day" and value else value
        for key, value in bucket.group
    }
    return schema.UsageBucket.model_validate(group | bucket.sums)


def _may_see(caller: Caller, team: str) -> bool:
    return team == caller.team or "admin" in caller.scopes


def _no_budget() -> NotFound:
    return NotFound("there is no such budget", code="budget_not_found", param="name")


def _shown(services: Services, budget: Budget) -> schema.Budget:
    unpriced = [name for name, judge in services.settings.judges.items() if not judge.priced]
    return schema.Budget(
        team=budget.team,
        run=budget.run_id,
        hard_usd=budget.hard_usd,
        soft_usd=budget.soft_usd,
        window=budget.window,
        since=budget.since,
        spent_usd=budget.spent_usd,
        unpriced_judges=unpriced,
    )
