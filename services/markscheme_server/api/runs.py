"""`/v1/runs`: training runs, their steps, criteria, findings and groups."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import StringConstraints

from markscheme import schema
from markscheme.vocabulary import GroupSort
from markscheme_server.api.body import EncodedRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import (
    NO_NUL,
    After,
    AnyCaller,
    Limit,
    PlainInteger,
    Reader,
    Scorer,
    UsesServices,
)
from markscheme_server.paths import names_in_query
from markscheme_server.scoring.run_comparison import MAX_RUNS, MIN_RUNS

router = APIRouter(prefix="/v1", route_class=EncodedRoute, responses=RESPONSES, tags=["Runs"])

RunPath = Annotated[
    schema.Identifier, Path(description="The run's id, percent-encoded: `/` is `%2F`")
]
AfterRun = Annotated[
    str | None, Query(max_length=200, pattern=NO_NUL, description="The last id of the page before")
]
Bins = Annotated[int, PlainInteger, Query(ge=1, le=1000, description="Spans at most")]
StepQuery = Annotated[int | None, PlainInteger, Query(ge=0, le=2**31 - 1)]
PromptKeyAfter = Annotated[
    str | None,
    Query(pattern="^[0-9a-f]{64}$", description="The last prompt key of the page before"),
]
CriterionKey = Annotated[
    str | None, Query(pattern="^[0-9a-f]{64}$", description="The key of a criterion")
]


@router.get("/runs", summary="List runs, most recently active first")
async def list_runs(
    caller: Reader, services: UsesServices, limit: Limit = 20, after: AfterRun = None
) -> schema.RunList:
    """List the runs of the caller's team: state, rewards, cost and how many findings.

    `findings` is null for a run that has not been looked at since it changed, if there is no time.
    """
    return await services.runs.runs(caller, limit=limit, after=after)


async def _compared_runs(  # FastAPI runs plain functions in a thread
    request: Request,
    runs: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, pattern=NO_NUL)]],
        Query(
            description="2 to 6 runs, repeated or by commas; a comma in an id is `%2C`",
            # Not for FastAPI, which would count `a,b` as one.
            json_schema_extra={"minItems": MIN_RUNS, "maxItems": MAX_RUNS, "uniqueItems": True},
        ),
    ],
) -> list[str]:
    return names_in_query(request.scope["query_string"], "runs")


@router.get("/runs:compare", summary="Compare runs")
async def compare_runs(
    runs: Annotated[list[str], Depends(_compared_runs)],
    caller: Reader,
    services: UsesServices,
    bins: Bins = 200,
    criteria: Annotated[
        int, PlainInteger, Query(ge=1, le=400, description="Criteria at most")
    ] = 40,
    limit: Limit = 50,
    after: PromptKeyAfter = None,
) -> schema.RunComparison:
    """Return two to six runs beside each other; all are compared with the first.

    Rewards by step in the same spans, criteria that two or more runs were asked, and the prompts
    that runs share with the first, those with the greatest loss first. `after`: the last prompt key
    of the page before.
    """
    return await services.comparisons.compare(
        caller, runs, bins=bins, criteria=criteria, limit=limit, after=after
    )


@router.get("/runs/{run_id:encoded}", summary="Get a run")
async def get_run(run_id: RunPath, caller: Reader, services: UsesServices) -> schema.RunDetail:
    """Return what a run is, how it does and what it cost."""
    return await services.runs.run(caller, run_id)


@router.put("/runs/{run_id:encoded}", summary="Create or change a run")
async def put_run(
    run_id: RunPath, payload: schema.RunPut, caller: Scorer, services: UsesServices
) -> schema.RunDetail:
    """Say what a run is: its state, planned steps and facts. What is left out stays as it is.

    A run need not be created: the first group that is scored for it does that.
    """
    return await services.runs.put(caller, run_id, payload)


@router.post("/runs/{run_id:encoded}/records", status_code=204, summary="Add metrics of steps")
async def add_run_records(
    run_id: RunPath, payload: schema.RunRecords, caller: Scorer, services: UsesServices
) -> Response:
    """Store the trainer's own metrics of steps. A step that is sent again replaces itself."""
    await services.runs.add_records(caller, run_id, payload.records)
    return Response(status_code=204)


@router.get("/runs/{run_id:encoded}/steps", summary="Get rewards by step")
async def get_run_steps(
    run_id: RunPath,
    caller: Reader,
    services: UsesServices,
    bins: Bins = 200,
    first_step: StepQuery = None,
    last_step: StepQuery = None,
) -> schema.StepList:
    """Return rewards, lengths, unscored rollouts and the trainer's metrics by spans of steps."""
    return await services.runs.steps(
        caller, run_id, bins=bins, first_step=first_step, last_step=last_step
    )


@router.get("/runs/{run_id:encoded}/criteria", summary="Get how often criteria are met by step")
async def get_run_criteria(
    run_id: RunPath,
    caller: Reader,
    services: UsesServices,
    bins: Bins = 100,
    limit: Limit = 40,
    after: CriterionKey = None,
    criterion: CriterionKey = None,
) -> schema.CriterionList:
    """Return the criteria of a run by spans of steps: those with findings first.

    `after`: the last key of the page before. `criterion`: this one only.
    """
    return await services.runs.criteria(
        caller, run_id, bins=bins, limit=limit, after=after, criterion=criterion
    )


@router.get("/runs/{run_id:encoded}/findings", summary="Get what is wrong with a run")
async def get_run_findings(
    run_id: RunPath, caller: AnyCaller, services: UsesServices
) -> schema.FindingList:
    """Return findings in sentences, alarms first, each with the groups that prove it.

    A key with the scope `score` that created the run may ask too.
    """
    await services.runs.require_reader(caller, run_id)
    return await services.runs.findings(caller, run_id)


@router.get("/runs/{run_id:encoded}/groups", summary="List the groups of a run")
async def list_run_groups(
    run_id: RunPath,
    caller: Reader,
    services: UsesServices,
    first_step: StepQuery = None,
    last_step: StepQuery = None,
    criterion: CriterionKey = None,
    sort: GroupSort = "newest",
    limit: Limit = 50,
    after: After = None,
) -> schema.RunGroupList:
    """List groups by what they show.

    `flat` has those without spread, `above_teacher` those that the teacher does not beat, `unknown`
    those with unscored rollouts, `disagreement` those that a second judge scored.
    """
    wanted = schema.GroupFilter(
        first_step=first_step, last_step=last_step, criterion=criterion, sort=sort
    )
    return await services.groups.groups(caller, run_id, wanted, limit=limit, after=after)
