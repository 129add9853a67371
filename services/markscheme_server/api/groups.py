"""`/v1/groups` and how criteria do: one scored group, and the health of a rubric."""

from typing import Annotated

from fastapi import APIRouter, Query

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Reader, UsesServices

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Runs"])


@router.get("/groups/{group_id:id}", summary="Get a scored group")
async def get_group(group_id: str, caller: Reader, services: UsesServices) -> schema.GroupDetail:
    """Return a group's prompt, rubric, rollouts, verdicts with evidence, and teacher responses.

    `group_id` is the `id` that `GET /v1/runs/{id}/groups` lists, not the caller's own.
    """
    return await services.groups.group(caller, group_id)


@router.get("/groups/{group_id:id}/judge-prompt", summary="Get what the judge was shown")
async def get_judge_prompt(
    group_id: str,
    caller: Reader,
    services: UsesServices,
    rollout: Annotated[schema.Identifier, Query(description="The id of one of its rollouts")],
) -> schema.JudgePrompt:
    """Rebuild the message in which the judge was asked about a rollout.

    It is null, with the reason, where the judge has no model or another template now.
    """
    return await services.groups.judge_prompt(caller, group_id, rollout)


@router.get("/rubrics/{rubric_id:id}/health", summary="Get how the criteria of a rubric do")
async def get_rubric_health(
    rubric_id: str, caller: Reader, services: UsesServices
) -> schema.RubricHealth:
    """Return how often each criterion is met in the caller's groups, and what is wrong with it."""
    return await services.judge_reports.health(caller, rubric_id)
