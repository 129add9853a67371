"""Rubrics: criteria, provenance, visibility, and how one is made."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, model_validator
from pydantic import Tag as Branch

from markscheme.checks import Check
from markscheme.display import rubric_html, rubrics_html, shorten
from markscheme.schema.base import (
    MAX_CRITERIA,
    MAX_POINTS,
    MAX_TEXT_LENGTH,
    Identifier,
    JudgeName,
    Message,
    ModelName,
    ModelText,
    Prompt,
    ShortText,
    Tags,
    TeamName,
    Text,
    Trajectory,
    Wire,
    text_or_messages,
)
from markscheme.schema.metadata import MAX_METADATA_BYTES, Metadata, json_bytes
from markscheme.schema.teachers import TeacherResponses
from markscheme.text import is_blank
from markscheme.vocabulary import (
    Category,
    ReusePolicy,
    ReuseScope,
    RubricOrigin,
    Thinking,
    View,
    Visibility,
)


class Criterion(Wire):
    """One binary statement about a response, worth `points` when it is met.

    Negative points mark a pitfall: meeting it takes points away. `check` lets code decide it.
    `source` is the span of the prompt that the criterion was read from, if there is one.
    """

    id: Annotated[str, StringConstraints(pattern=r"^c[1-9]\d{0,2}$")] | None = Field(
        default=None, description="c1, c2, …; numbered in order when left out"
    )
    text: ShortText
    category: Category = "task_fulfilment"
    points: Annotated[int, Field(ge=-MAX_POINTS, le=MAX_POINTS)]
    check: Check | None = None
    source: Annotated[Text, StringConstraints(max_length=MAX_TEXT_LENGTH)] | None = None
    metadata: Metadata = {}
    may_not_apply: bool = Field(
        default=False,
        description="The verifier may answer that the criterion does not apply to a response; its "
        "points then count neither as earned nor as missed",
    )

    @model_validator(mode="after")
    def _check_applies(self) -> "Criterion":
        if self.check is not None and self.may_not_apply:
            raise ValueError(
                "a check applies to every response: give a criterion check or may_not_apply, not "
                "both"
            )
        return self


class Provenance(Wire):
    """What made a rubric.

    Of one that was induced because another no longer served: `replaces` is that one, and `reason`
    says which of its criteria were saturated or inverted. Of an imported one: `format` is the
    format that it was read from, and its points are the file's times `points_factor`, where they
    had to be scaled.
    """

    rubricator: str | None = None
    template: str | None = None
    teacher_model: str | None = None
    teacher_keys: list[str] = []
    student_keys: list[str] = []
    run: str | None = None
    format: str | None = None
    points_factor: float | None = None
    replaces: str | None = None
    reason: str | None = None


class Rubric(Wire):
    """A stored rubric. It never changes: an edited one is a new version with a parent."""

    object: Literal["rubric"] = "rubric"
    id: str
    version: int
    parent_id: str | None
    prompt_key: str
    prompt: list[Message]
    content_hash: str
    team: str
    visibility: Visibility
    shared_with: list[str] = Field(description="Which teams see it; only its own team is told")
    criteria: list[Criterion]
    view: View | None = None
    maximum_score: int
    origin: RubricOrigin
    tags: list[str]
    created_at: datetime
    retired_at: datetime | None
    provenance: Provenance
    metadata: dict[str, Any] = Field(default={}, description="Only its own team is told")

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show what tells rubrics apart, not all of it: pydantic's hook for `repr` and `str`."""
        return [
            ("id", self.id),
            ("version", self.version),
            ("prompt", shorten(self.prompt[-1].text) if self.prompt else ""),
            ("criteria", len(self.criteria)),
            ("maximum_score", self.maximum_score),
        ]

    def _repr_html_(self) -> str:
        return rubric_html(self)


def _check_criteria(criteria: list[Criterion]) -> list[Criterion]:
    ids = [c.id for c in criteria if c.id is not None]
    if ids and len(ids) != len(criteria):
        raise ValueError("give every criterion an id, or none")
    if len(set(ids)) != len(ids):
        raise ValueError("criterion ids must be unique")
    if any(is_blank(c.text) for c in criteria):
        raise ValueError("the text of a criterion must hold more than white space")
    if any(c.points == 0 for c in criteria):
        raise ValueError("points must not be 0")
    if not any(c.points > 0 for c in criteria):
        raise ValueError("a rubric needs at least one criterion with positive points")
    size = sum(json_bytes(c.metadata) for c in criteria if c.metadata)
    if size > MAX_METADATA_BYTES:
        raise ValueError(
            f"the metadata of the criteria takes {size} bytes; it may take {MAX_METADATA_BYTES}"
        )
    return criteria


Criteria = Annotated[
    list[Criterion], Field(min_length=1, max_length=MAX_CRITERIA), AfterValidator(_check_criteria)
]
"""The criteria of one rubric."""


RubricView = Annotated[
    View | None,
    Field(
        description="Which part of a trajectory its criteria are about: reply, the last text of "
        "the assistant; assistant, all its texts; full, also tool calls, their results and what "
        "others said. Default: as the judge is set"
    ),
]
RequestedView = Annotated[
    View | None,
    Field(
        description="Which part of a trajectory is judged: reply, assistant or full. Default: as "
        "the rubric says, else as the judge is set"
    ),
]


class RubricCreate(Wire):
    """`POST /v1/rubrics`: store a rubric of your own for a prompt."""

    prompt: Prompt
    criteria: Criteria
    view: RubricView = None
    tags: Tags = []
    metadata: Metadata = {}


class RubricFork(Wire):
    """`POST /v1/rubrics/{id}:fork`: a new version, or a copy of another team's rubric.

    Criteria, view, tags and metadata that are left out are copied.
    """

    criteria: Criteria | None = None
    view: RubricView = None
    tags: Tags | None = None
    metadata: Metadata | None = None


class RubricPatch(Wire):
    """`PATCH /v1/rubrics/{id}`: change visibility, tags, or whether groups still get the rubric.

    Fields that are left out stay. Criteria never change: fork the rubric instead.
    """

    visibility: Visibility | None = None
    shared_with: Annotated[list[TeamName], Field(max_length=100)] | None = None
    tags: Tags | None = None
    retired: bool | None = None


class RubricList(Wire):
    """One page of rubrics, newest first."""

    object: Literal["list"] = "list"
    data: list[Rubric]
    has_more: bool
    quality: dict[str, float] = Field(
        default={},
        description=(
            "By rubric id: the share of your team's scored groups in which rollouts got different "
            "rewards; where your team has none, the mean over other teams that used the rubric "
            "enough, up to yesterday"
        ),
    )

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show the ids only."""
        return [("data", [rubric.id for rubric in self.data]), ("has_more", self.has_more)]

    def _repr_html_(self) -> str:
        return rubrics_html(self)


ReusedTeacherModel = Annotated[
    ModelName | None,
    Field(description="Reuse only induced rubrics that this model's responses were contrasted for"),
]
ReusedRubricator = Annotated[
    ModelName | None,
    Field(
        description="Reuse only induced rubrics whose provenance.rubricator begins with this, "
        "such as openai/MODEL@"
    ),
]
"""Filters on the rubrics that `if_fresh` and `frozen` may reuse; none by default."""
ReusedScope = Annotated[
    ReuseScope | None,
    Field(
        description=(
            "Whose rubrics are reused. own: the team's; shared: also those shared with the team; "
            "organisation: also the organisation's. Default: the team's setting; without one, own "
            "where there are teacher responses and a rubric may be induced, else organisation"
        )
    ),
]


class StudentResponse(Wire):
    """A student's rollout as the rubricator sees it: a text, or messages."""

    text: ModelText | None = None
    messages: Trajectory | None = None
    truncated: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> "StudentResponse":
        if (self.text is None) == (self.messages is None):
            raise ValueError("give exactly one of text and messages")
        return self


StudentAnswer = Annotated[
    Annotated[ModelText, Branch("<text>")]
    | Annotated[Trajectory, Branch("<messages>")]
    | Annotated[StudentResponse, Branch("StudentResponse")],
    Discriminator(lambda value: text_or_messages(value) or "StudentResponse"),
]
"""A text, a list of messages, or either of them with what is known of it."""


class InduceRequest(Wire):
    """`POST /v1/rubrics:induce`: make a rubric by contrasting teacher and student responses."""

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None
    student_responses: Annotated[list[StudentAnswer], Field(min_length=1, max_length=256)]
    view: RequestedView = None
    thinking: Thinking = Field(default="auto", description="Of student responses, as in scoring")
    reuse: ReusePolicy = "if_fresh"
    teacher_model: ReusedTeacherModel = None
    rubricator: ReusedRubricator = None
    reuse_scope: ReusedScope = None
    run: Identifier | None = None
    tags: Tags = []
    judge: JudgeName | None = None
