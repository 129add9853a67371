"""Scoring a batch: groups of rollouts in, rewards that are known or null with a reason out."""

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
    Usage,
    Wire,
)
from markscheme.schema.rubrics import Criterion, ReusedRubricator, ReusedScope, ReusedTeacherModel
from markscheme.schema.teachers import TeacherResponses
from markscheme.vocabulary import AssignedOrigin, ReusePolicy, Thinking, UnscoredReason, VerifyMode


class Rollout(Wire):
    """One sampled student response. ``truncated``: it hit the token limit, so its end is not its own."""

    id: Identifier
    text: ModelText
    truncated: bool = False


class Group(Wire):
    """The rollouts of one prompt occurrence. The id is the caller's; two groups may share a prompt."""

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
    """The training run and step that a batch belongs to: a re-sent step then gets the same rubrics."""

    id: Identifier
    step: Annotated[int, Field(ge=0, le=2**31 - 1)]


class ScoreRequest(Wire):
    """``POST /v1/scores``: score a whole training batch."""

    groups: Annotated[list[Group], Field(min_length=1, max_length=MAX_ROLLOUTS)]
    reuse: ReusePolicy = "if_fresh"
    verify: VerifyMode = "rollout"
    thinking: Thinking = Field(
        default="auto",
        description="What of a rollout is judged. strip: it begins inside a thought, which the chat "
        "template opened; auto: a thought at its beginning is cut off when the rollout "
        "opens it itself; keep: all of it",
    )
    score_teachers: bool = False
    ask_teacher: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0,
        description="Responses to ask the service's teacher for where a new rubric has none to go by",
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
    """Met, not met, or not known (``met`` is ``None`` and ``reason`` says why).

    ``evidence`` quotes the response, ``rationale`` argues the verdict, where the judge is set to give them.
    """

    criterion_id: str
    met: bool | None
    evidence: str | None = None
    rationale: str | None = None
    cached: bool = False
    reason: UnscoredReason | None = None


class RolloutScore(Wire):
    """The reward of one rollout with what it rests on. ``feedback``: what it missed, most points first."""

    id: str
    reward: Annotated[float, Field(ge=0.0, le=1.0)] | None
    status: Literal["scored", "unscored"]
    reason: UnscoredReason | None
    verdicts: list[VerdictView]
    feedback: list[str]


class RubricRef(Wire):
    """Which rubric a group was judged with, and how it came by it. ``team``: the team that made it; ``None`` only
    from a service of an older version."""

    id: str
    version: int
    content_hash: str
    origin: AssignedOrigin
    team: str | None = None
    criteria: list[Criterion]


class TeacherScore(Wire):
    """The teacher responses' rewards under the same rubric, in the order given."""

    rewards: list[Annotated[float, Field(ge=0.0, le=1.0)] | None]


class GroupScore(Wire):
    """One group's answer; also one NDJSON line."""

    object: Literal["score.group"] = "score.group"
    id: str
    status: Literal["scored", "partial", "unscored"]
    error: ErrorDetail | None
    rubric: RubricRef | None
    teacher: TeacherScore | None
    rollouts: list[RolloutScore]


class ScoreCounts(Wire):
    rollouts: int
    scored: int
    unscored: int


class ScoreBatch(Wire):
    """``POST /v1/scores`` answered: every group in the order sent."""

    object: Literal["score.batch"] = "score.batch"
    groups: list[GroupScore]
    counts: ScoreCounts
    usage: Usage

    @property
    def reasons(self) -> Counter[str]:
        """How many rollouts are unscored for each reason."""
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
    """An NDJSON line that only keeps the connection alive."""

    object: Literal["heartbeat"] = "heartbeat"
