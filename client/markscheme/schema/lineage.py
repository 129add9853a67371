"""The lineage of a rubric: what it was made from, and what it led to."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from markscheme.schema.base import Wire
from markscheme.vocabulary import EdgeKind, MakerRole, ResponseRole, RubricOrigin, Visibility


class LineageRubric(Wire):
    """A rubric that the caller's team may see. `quality` is as in `RubricList`.

    `run`, where it was induced, and `parent_hidden`, a parent that the team may not see any more,
    are given to the rubric's own team only.
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

    `text` is its first 4,000 characters, if the team still has it.
    """

    kind: Literal["response"] = "response"
    id: str
    role: ResponseRole
    key: str
    text: str | None


class LineageMaker(Wire):
    """The model or template that made rubrics, or the model whose responses they contrast."""

    kind: Literal["maker"] = "maker"
    id: str
    role: MakerRole
    name: str


class LineageRun(Wire):
    """A run of the caller's own team that was scored by the rubric.

    Rewards are means over the groups of a step. `reward_change` is from the first to the last
    scored step, if there are two.
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
    """An edge from the earlier to the later node.

    `version` leads from a parent of the same team, `fork` from another team's.
    """

    source: str
    target: str
    kind: EdgeKind


class CriterionVerdicts(Wire):
    """Decided verdicts of one criterion on the prompt, in any of its rubrics.

    `not_applicable` counts responses that the criterion does not apply to.
    """

    criterion_id: str
    met: int
    not_met: int
    not_applicable: int = 0


class LineageVerdicts(Wire):
    """Verdicts of the caller's own team. `unscored` counts rollouts without a reward."""

    met: int
    not_met: int
    not_applicable: int = 0
    unscored: int
    criteria: list[CriterionVerdicts]


class LineageUse(Wire):
    """Groups that were scored by the rubric.

    Of other teams only the number is given, up to yesterday (UTC). `quality` is as in `RubricList`.
    """

    groups: int
    other_teams_groups: int
    quality: float | None


class Lineage(Wire):
    """`GET /v1/rubrics/{id}/lineage`: the graph that the caller's team may see.

    Runs, `verdicts` and `use` are of the rubric asked for. `truncated` means that there is more
    than is shown.
    """

    object: Literal["lineage"] = "lineage"
    rubric_id: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    verdicts: LineageVerdicts
    use: LineageUse
    truncated: bool
