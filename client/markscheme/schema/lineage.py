"""The lineage of a rubric: what it was made from, what was made from it, and what came of training on it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from markscheme.schema.base import Wire
from markscheme.vocabulary import EdgeKind, MakerRole, ResponseRole, RubricOrigin, Visibility


class LineageRubric(Wire):
    """A rubric that the caller's team sees. ``quality``: as in :class:`markscheme.schema.RubricList`.

    Only its own team is told the run in which it was induced, and that it has a parent which the team does not see any
    more (``parent_hidden``).
    """

    kind: Literal["rubric"] = "rubric"
    id: str
    team: str
    version: int
    origin: RubricOrigin
    visibility: Visibility
    tags: list[str]
    created_at: datetime
    retired_at: datetime | None
    quality: float | None
    run: str | None
    parent_hidden: bool


class LineageResponse(Wire):
    """A response that a rubric of the caller's own team was contrasted from, by its hash.

    ``text``: its first 4,000 characters, where the team still has it.
    """

    kind: Literal["response"] = "response"
    id: str
    role: ResponseRole
    key: str
    text: str | None


class LineageMaker(Wire):
    """The model or the template that made rubrics, or the model whose responses they were contrasted from."""

    kind: Literal["maker"] = "maker"
    id: str
    role: MakerRole
    name: str


class LineageRun(Wire):
    """A run of the caller's own team that was scored by the rubric. Rewards are means over the groups of a step.

    ``reward_change``: from the first to the last scored step, where there are two.
    """

    kind: Literal["run"] = "run"
    id: str
    run: str
    groups: int
    groups_with_spread: int
    first_step: int
    last_step: int
    first_reward: float | None
    last_reward: float | None
    reward_change: float | None


LineageNode = Annotated[
    LineageRubric | LineageResponse | LineageMaker | LineageRun, Field(discriminator="kind")
]


class LineageEdge(Wire):
    """From what was there first. ``version``: from a parent of the same team; ``fork``: from another team's."""

    source: str
    target: str
    kind: EdgeKind


class CriterionVerdicts(Wire):
    """Decided verdicts of one criterion on the prompt, in whichever of its rubrics they were reached."""

    criterion_id: str
    met: int
    not_met: int


class LineageVerdicts(Wire):
    """The caller's own team's verdicts. ``unscored``: rollouts whose reward is not known."""

    met: int
    not_met: int
    unscored: int
    criteria: list[CriterionVerdicts]


class LineageUse(Wire):
    """Groups that were given the rubric. Of other teams' there is only the number, up to yesterday (UTC).

    ``quality``: as in :class:`markscheme.schema.RubricList`.
    """

    groups: int
    other_teams_groups: int
    quality: float | None


class Lineage(Wire):
    """``GET /v1/rubrics/{id}/lineage``: a graph of what the caller's team sees.

    Runs, ``verdicts`` and ``use`` are of the rubric asked for. ``truncated``: there is more than is told.
    """

    object: Literal["lineage"] = "lineage"
    rubric_id: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    verdicts: LineageVerdicts
    use: LineageUse
    truncated: bool
