"""The wire contract of the Markscheme service, version 1: one definition for the SDK and the server.

Requests are strict: unknown fields, wrong types, NUL characters and non-finite numbers are refused.
A reward that is not known is ``None`` and carries an :class:`UnscoredReason`; it is never a made-up 0.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from markscheme.checks import Check
from markscheme.vocabulary import (
    AssignedOrigin,
    Category,
    ReusePolicy,
    Role,
    RubricOrigin,
    Scope,
    UnscoredReason,
    VerifyMode,
    Visibility,
)

__all__ = [
    "Check",
    "Criterion",
    "ErrorBody",
    "ErrorDetail",
    "Group",
    "GroupScore",
    "InduceRequest",
    "Key",
    "KeyCreate",
    "KeyCreated",
    "KeyList",
    "KeyRotate",
    "Message",
    "Prompt",
    "Provenance",
    "Rollout",
    "RolloutScore",
    "Rubric",
    "RubricCreate",
    "RubricFork",
    "RubricList",
    "RubricPatch",
    "RubricRef",
    "Run",
    "ScoreBatch",
    "ScoreCounts",
    "ScoreRequest",
    "StudentResponse",
    "Taught",
    "Team",
    "TeamCreate",
    "TeamList",
    "TeachRequest",
    "TeacherBankChange",
    "TeacherEntry",
    "TeacherResponse",
    "TeacherResponseList",
    "TeacherResponsesCreate",
    "TeacherScore",
    "UnscoredReason",
    "Usage",
    "VerdictView",
]

MAX_ROLLOUTS = 4096
"""Most rollouts in one ``POST /v1/scores``."""
MAX_TEACHER_ENTRIES = 1000
"""Most prompts in one ``POST /v1/teacher-responses``."""


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
"""Any text without NUL; lone surrogates cannot arrive, the JSON decoder refuses them."""
ShortText = Annotated[Text, StringConstraints(min_length=1, max_length=4000)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
JudgeName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
TeamName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\w.:/-]+$")]


class Wire(BaseModel):
    """Base of everything on the wire: strict, closed, finite, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Message(Wire):
    """One chat message of a prompt."""

    role: Role
    content: Text


Messages = Annotated[list[Message], Field(min_length=1, max_length=256)]
Prompt = Annotated[Text, StringConstraints(min_length=1)] | Messages
"""A list of chat messages; a string stands for one user message."""


class Criterion(Wire):
    """One binary statement about a response, worth ``points`` when it is met.

    Negative points mark a pitfall: meeting it takes points away. ``check`` makes it decidable by code.
    ``source`` is the span of the prompt that the criterion was read from, where there is one.
    """

    id: Annotated[str, StringConstraints(pattern=r"^c[1-9]\d{0,2}$")] | None = Field(
        default=None, description="c1, c2, …; numbered in order when left out"
    )
    text: ShortText
    category: Category = "task_fulfilment"
    points: Annotated[int, Field(ge=-100, le=100)]
    check: Check | None = None
    source: Annotated[Text, StringConstraints(max_length=4000)] | None = None


class Provenance(Wire):
    """Where a rubric came from: enough to say later what made it."""

    rubricator: str | None = None
    template: str | None = None
    teacher_model: str | None = None
    teacher_keys: list[str] = []
    student_keys: list[str] = []
    run: str | None = None


class Rubric(Wire):
    """A stored rubric: immutable; a changed one is a new version with a parent."""

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
    maximum_score: int
    origin: RubricOrigin
    tags: list[str]
    created_at: datetime
    retired_at: datetime | None
    provenance: Provenance


def _usable(criteria: list[Criterion]) -> list[Criterion]:
    given = [c.id for c in criteria if c.id is not None]
    if given and len(given) != len(criteria):
        raise ValueError("give every criterion an id, or none")
    if len(set(given)) != len(given):
        raise ValueError("criterion ids must be unique")
    if any(c.points == 0 for c in criteria):
        raise ValueError("points must not be 0")
    if not any(c.points > 0 for c in criteria):
        raise ValueError("a rubric needs at least one criterion with positive points")
    return criteria


Criteria = Annotated[list[Criterion], Field(min_length=1, max_length=64), AfterValidator(_usable)]
"""The criteria of one rubric."""


class RubricCreate(Wire):
    """``POST /v1/rubrics``: bring your own rubric for a prompt."""

    prompt: Prompt
    criteria: Criteria
    tags: Annotated[list[Tag], Field(max_length=32)] = []


class RubricFork(Wire):
    """``POST /v1/rubrics/{id}:fork``: a new version with other criteria, or a copy of another team's for one's own.

    Criteria that are left out stay as they are, and tags likewise.
    """

    criteria: Criteria | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class RubricPatch(Wire):
    """``PATCH /v1/rubrics/{id}``: who sees a rubric, its tags, whether groups still get it. What is left out stays.

    What a rubric says never changes: edit it as a new version.
    """

    visibility: Visibility | None = None
    shared_with: Annotated[list[TeamName], Field(max_length=100)] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None
    retired: bool | None = None


class RubricList(Wire):
    """One page of rubrics, newest first."""

    object: Literal["list"] = "list"
    data: list[Rubric]
    has_more: bool


class StudentResponse(Wire):
    """A student's rollout as the rubricator sees it."""

    text: Text
    truncated: bool = False


TeacherResponses = Annotated[list[Annotated[Text, StringConstraints(min_length=1)]], Field(min_length=1, max_length=16)]


class InduceRequest(Wire):
    """``POST /v1/rubrics:induce``: contrast teacher and student responses into a rubric for the prompt."""

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None
    student_responses: Annotated[list[Text | StudentResponse], Field(min_length=1, max_length=256)]
    reuse: ReusePolicy = "if_fresh"
    run: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] = []
    judge: JudgeName | None = None


class Rollout(Wire):
    """One sampled student response. ``truncated``: it hit the token limit, so its end is not its own."""

    id: Identifier
    text: Text
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
    score_teachers: bool = False
    ask_teacher: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="Responses to ask the service's teacher for where a new rubric has none to go by")
    run: Run | None = None
    judge: JudgeName | None = Field(default=None, description="A judge of the service by name; default: by role")

    @model_validator(mode="after")
    def _bounded(self) -> "ScoreRequest":
        if len({g.id for g in self.groups}) != len(self.groups):
            raise ValueError("group ids must be unique within a request")
        if sum(len(g.rollouts) for g in self.groups) > MAX_ROLLOUTS:
            raise ValueError(f"at most {MAX_ROLLOUTS} rollouts in one request; send several")
        return self


class VerdictView(Wire):
    """Met, not met, or not known (``met`` is ``None`` and ``reason`` says why)."""

    criterion_id: str
    met: bool | None
    evidence: str | None = None
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
    """Which rubric a group was judged with, and how it came by it."""

    id: str
    version: int
    content_hash: str
    origin: AssignedOrigin
    criteria: list[Criterion]


class TeacherScore(Wire):
    """The teacher responses' rewards under the same rubric, in the order given."""

    rewards: list[Annotated[float, Field(ge=0.0, le=1.0)] | None]


class ErrorDetail(Wire):
    """What went wrong, in words a caller can act on."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(Wire):
    """The one error shape of the service."""

    error: ErrorDetail
    request_id: str


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


class TeacherEntry(Wire):
    """Responses of a teacher to one prompt; ``model`` is what they came from, where that is known."""

    prompt: Prompt
    responses: TeacherResponses
    model: Identifier | None = None


class TeacherResponsesCreate(Wire):
    """``POST /v1/teacher-responses``: put responses into the teacher bank."""

    entries: Annotated[list[TeacherEntry], Field(min_length=1, max_length=MAX_TEACHER_ENTRIES)]


class TeacherBankChange(Wire):
    """What came of it. ``duplicates``: responses that the bank held already, or that were sent twice."""

    object: Literal["teacher_responses.saved"] = "teacher_responses.saved"
    added: int
    duplicates: int


class TeacherResponse(Wire):
    """One response of the bank."""

    text: str
    model: str | None
    created_at: datetime


class TeacherResponseList(Wire):
    """``GET /v1/teacher-responses``: what the bank holds for a prompt, oldest first."""

    object: Literal["list"] = "list"
    prompt_key: str
    data: list[TeacherResponse]


class TeachRequest(Wire):
    """``POST /v1/teacher-responses:sample``: have the teacher asked until the bank holds ``count`` responses."""

    prompt: Prompt
    count: Annotated[int, Field(ge=1, le=16)] = 1


class Usage(Wire):
    """What the request cost."""

    judge_calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_verdicts: int


class Taught(Wire):
    """What the bank holds now. ``duplicates``: what the teacher said again; ``data`` may then be shorter than asked."""

    object: Literal["teacher_responses.sampled"] = "teacher_responses.sampled"
    prompt_key: str
    data: list[TeacherResponse]
    added: int
    duplicates: int
    usage: Usage


class ScoreBatch(Wire):
    """``POST /v1/scores`` answered: every group in the order sent."""

    object: Literal["score.batch"] = "score.batch"
    groups: list[GroupScore]
    counts: ScoreCounts
    usage: Usage


class ScoreSummary(Wire):
    """The last NDJSON line."""

    object: Literal["score.summary"] = "score.summary"
    counts: ScoreCounts
    usage: Usage


class TeamCreate(Wire):
    """``POST /v1/teams``."""

    name: TeamName


class Team(Wire):
    """A team of the organisation: what it makes is its own until it shares it."""

    object: Literal["team"] = "team"
    name: str
    created_at: datetime


class TeamList(Wire):
    """``GET /v1/teams``: every team, by name."""

    object: Literal["list"] = "list"
    data: list[Team]


class KeyCreate(Wire):
    """``POST /v1/keys``: a key for a member of a team."""

    team: TeamName
    scopes: Annotated[list[Scope], Field(min_length=1)]
    label: Identifier | None = None
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = None


class Key(Wire):
    """A key as it is kept: by its first characters, ``prefix``. It opens nothing once it expired or was revoked."""

    object: Literal["key"] = "key"
    prefix: str
    team: str
    scopes: list[Scope]
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyCreated(Key):
    """The answer that holds the key itself: it is not kept and cannot be had again."""

    key: str


class KeyList(Wire):
    """``GET /v1/keys``: newest first."""

    object: Literal["list"] = "list"
    data: list[Key]


class KeyRotate(Wire):
    """``POST /v1/keys/{prefix}:rotate``: a new key; the old one goes on for ``overlap_s`` at most."""

    overlap_s: Annotated[int, Field(ge=0, le=90 * 86_400)] = 86_400


class Heartbeat(Wire):
    """An NDJSON line that only keeps the connection alive."""

    object: Literal["heartbeat"] = "heartbeat"
