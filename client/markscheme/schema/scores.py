"""Scoring a batch: groups of rollouts in, rewards out; an unknown reward is null with a reason."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from markscheme.schema.base import (
    MAX_ROLLOUTS,
    ErrorDetail,
    Identifier,
    JudgeName,
    ModelText,
    Prompt,
    Trajectory,
    Usage,
    Wire,
)
from markscheme.schema.rubrics import (
    Criterion,
    RequestedView,
    ReusedRubricator,
    ReusedScope,
    ReusedTeacherModel,
)
from markscheme.schema.teachers import TeacherResponses
from markscheme.vocabulary import (
    AssignedOrigin,
    ReusePolicy,
    Thinking,
    UnscoredReason,
    VerifyMode,
    View,
)


class Rollout(Wire):
    """One sampled student response: a text, or the messages that follow those of the prompt.

    `truncated` means that it hit the token limit.
    """

    id: Identifier
    text: ModelText | None = None
    messages: Trajectory | None = None
    truncated: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> "Rollout":
        if (self.text is None) == (self.messages is None):
            raise ValueError("give exactly one of text and messages")
        return self


class Group(Wire):
    """The rollouts of one prompt occurrence.

    The id is the caller's; two groups may share a prompt.
    """

    id: Identifier
    prompt: Prompt
    rubric_id: Identifier | None = None
    teacher_responses: TeacherResponses | None = None
    rollouts: Annotated[list[Rollout], Field(min_length=1, max_length=1024)]

    @model_validator(mode="after")
    def _distinct(self) -> "Group":
        if len({r.id for r in self.rollouts}) != len(self.rollouts):
            raise ValueError("rollout ids must be unique within a group")
        return self


class Run(Wire):
    """The training run and step of a batch: a re-sent step gets the same rubrics."""

    id: Identifier
    step: Annotated[int, Field(ge=0, le=2**31 - 1)]


class ScoreRequest(Wire):
    """`POST /v1/scores`: score a whole training batch."""

    groups: Annotated[list[Group], Field(min_length=1, max_length=MAX_ROLLOUTS)]
    reuse: ReusePolicy = "if_fresh"
    verify: VerifyMode = "rollout"
    thinking: Thinking = Field(
        default="auto",
        description="What is judged of a rollout. auto drops a thought that the rollout opens "
        "itself; strip drops one that the chat template opened; keep drops nothing",
    )
    view: RequestedView = None
    score_teachers: bool = False
    ask_teacher: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0,
        description="Responses to sample from the service's teacher where a new rubric has none",
    )
    teacher_model: ReusedTeacherModel = None
    rubricator: ReusedRubricator = None
    reuse_scope: ReusedScope = None
    run: Run | None = None
    judge: JudgeName | None = Field(
        default=None, description="A judge of the service by name; default: by role"
    )

    @model_validator(mode="after")
    def _bounded(self) -> "ScoreRequest":
        if len({g.id for g in self.groups}) != len(self.groups):
            raise ValueError("group ids must be unique within a request")
        if sum(len(g.rollouts) for g in self.groups) > MAX_ROLLOUTS:
            raise ValueError(f"at most {MAX_ROLLOUTS} rollouts in one request; send several")
        return self


class VerdictView(Wire):
    """Met, not met, or unknown (`met` is null and `reason` says why).

    `evidence` quotes the response and `rationale` argues the verdict, if the judge is set to give
    them.
    """

    criterion_id: str
    met: bool | None
    evidence: str | None = None
    rationale: str | None = None
    cached: bool = False
    reason: UnscoredReason | None = None


class RolloutScore(Wire):
    """The reward of one rollout and its verdicts.

    `feedback` lists the criteria that it missed, most points first. `view` is what of the rollout
    was judged. `shown_tokens` of it were shown to the judge and `left_out_tokens` were not,
    estimated at four characters a token; both are null where nothing was judged.
    """

    id: str
    reward: Annotated[float, Field(ge=0.0, le=1.0)] | None
    status: Literal["scored", "unscored"]
    reason: UnscoredReason | None
    verdicts: list[VerdictView]
    feedback: list[str]
    view: View | None = None
    shown_tokens: int | None = None
    left_out_tokens: int | None = None


class RubricRef(Wire):
    """The rubric that a group was judged with, and where it came from.

    `team` is the team that made it; null only from an older service.
    """

    id: str
    version: int
    content_hash: str
    origin: AssignedOrigin
    team: str | None = None
    criteria: list[Criterion]


class TeacherScore(Wire):
    """Rewards of the teacher responses under the same rubric, in the order given."""

    rewards: list[Annotated[float, Field(ge=0.0, le=1.0)] | None]


class GroupScore(Wire):
    """The answer for one group; also one NDJSON line."""

    object: Literal["score.group"] = "score.group"
    id: str
    status: Literal["scored", "partial", "unscored"]
    error: ErrorDetail | None
    rubric: RubricRef | None
    teacher: TeacherScore | None
    rollouts: list[RolloutScore]


class ScoreCounts(Wire):
    """How many rollouts have a reward."""

    rollouts: int
    scored: int
    unscored: int


class ScoreBatch(Wire):
    """The answer of `POST /v1/scores`: every group in the order sent."""

    object: Literal["score.batch"] = "score.batch"
    groups: list[GroupScore]
    counts: ScoreCounts
    usage: Usage

    @property
    def reasons(self) -> Counter[str]:
        """Unscored rollouts, counted by reason."""
        return Counter(
            rollout.reason.value
            for group in self.groups
            for rollout in group.rollouts
            if rollout.reason is not None
        )


class ScoreSummary(Wire):
    """The last NDJSON line."""

    object: Literal["score.summary"] = "score.summary"
    counts: ScoreCounts
    usage: Usage


class Heartbeat(Wire):
    """An NDJSON line that keeps the connection alive."""

    object: Literal["heartbeat"] = "heartbeat"
