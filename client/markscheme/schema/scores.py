"""Scoring a batch: groups of rollouts in, rewards out; an unknown reward is null with a reason."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from pydantic import Field, model_validator

from markscheme.display import batch_html, group_html
from markscheme.schema.base import (
    MAX_GROUP,
    MAX_ROLLOUTS,
    MAX_WAIT_S,
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
    Clamp,
    ReusePolicy,
    Thinking,
    UnscoredReason,
    VerifyMode,
    View,
)

if TYPE_CHECKING:
    from pandas import DataFrame

Reward = Annotated[float, Field(le=1.0)]
"""Points met over positive points; below 0 only with `clamp` `signed`."""


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


class GroupPrompt(Wire):
    """The prompt of a group, and what its rubric is or is contrasted from, if that is given."""

    prompt: Prompt
    rubric_id: Identifier | None = None
    teacher_responses: TeacherResponses | None = None


class Group(GroupPrompt):
    """The rollouts of one prompt occurrence.

    The id is the caller's; two groups may share a prompt.
    """

    id: Identifier
    rollouts: Annotated[list[Rollout], Field(min_length=1, max_length=MAX_GROUP)]

    @model_validator(mode="after")
    def _distinct(self) -> "Group":
        if len({r.id for r in self.rollouts}) != len(self.rollouts):
            raise ValueError("rollout ids must be unique within a group")
        return self


class Run(Wire):
    """The training run and step of a batch: a re-sent step gets the same rubrics."""

    id: Identifier
    step: Annotated[int, Field(ge=0, le=2**31 - 1)]


class ScoreOptions(Wire):
    """How rollouts are scored."""

    reuse: ReusePolicy = "if_fresh"
    verify: VerifyMode = "rollout"
    thinking: Thinking = Field(
        default="auto",
        description="What is judged of a rollout. auto drops a thought that the rollout opens "
        "itself; strip drops one that the chat template opened; keep drops nothing",
    )
    view: RequestedView = None
    clamp: Clamp = Field(
        default="zero",
        exclude_if=lambda clamp: clamp == "zero",  # a service of an older version does not know it
        description="What becomes of a reward below 0, where pitfalls outweigh what was met. zero "
        "raises it to 0; signed keeps it",
    )
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


class ScoreRequest(ScoreOptions):
    """`POST /v1/scores`: score a whole training batch."""

    groups: Annotated[list[Group], Field(min_length=1, max_length=MAX_ROLLOUTS)]

    @model_validator(mode="after")
    def _bounded(self) -> "ScoreRequest":
        if len({g.id for g in self.groups}) != len(self.groups):
            raise ValueError("group ids must be unique within a request")
        if sum(len(g.rollouts) for g in self.groups) > MAX_ROLLOUTS:
            raise ValueError(f"at most {MAX_ROLLOUTS} rollouts in one request; send several")
        return self


class ArrivingGroup(Wire):
    """The group of a rollout that is sent alone.

    `key` names it within the team and the run. It is scored once `size` rollouts have arrived, or
    `wait_s` seconds after the first one with those that are there; the first one's `wait_s` counts.
    """

    key: Identifier
    size: Annotated[int, Field(ge=1, le=MAX_GROUP)]
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 60.0


class RolloutRequest(GroupPrompt, ScoreOptions):
    """`POST /v1/rollouts`: score one rollout together with those of its group.

    All rollouts of a group come with the same fields beside `rollout` and `group.wait_s`.
    """

    group: ArrivingGroup
    rollout: Rollout


class VerdictView(Wire):
    """Met, not met, not applicable, or unknown.

    `met` is null where the criterion does not apply (`applicable` is false) and where the verdict
    is unknown (`reason` says why). `evidence` quotes the response and `rationale` argues the
    verdict, if the judge is set to give them.
    """

    criterion_id: str
    met: bool | None
    applicable: bool = True
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
    reward: Reward | None
    status: Literal["scored", "unscored"]
    reason: UnscoredReason | None
    verdicts: list[VerdictView]
    feedback: list[str]
    view: View | None = None
    shown_tokens: int | None = None
    left_out_tokens: int | None = None

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show the reward, or why there is none: pydantic's hook for `repr` and `str`."""
        reason = [] if self.reason is None else [("reason", self.reason.value)]
        return [("id", self.id), ("reward", self.reward), *reason]


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


class RewardRange(Wire):
    """The least and the greatest reward that a response can get by a group's rubric.

    `min` is 0 unless the request asked for signed rewards of a rubric with negative points.
    """

    min: Annotated[float, Field(le=0.0)]
    max: Reward


class TeacherScore(Wire):
    """Rewards of the teacher responses under the same rubric, in the order given."""

    rewards: list[Reward | None]


class GroupScore(Wire):
    """The answer for one group; also one NDJSON line.

    `reward_range` is null without a rubric, and from an older service.
    """

    object: Literal["score.group"] = "score.group"
    id: str
    status: Literal["scored", "partial", "unscored"]
    error: ErrorDetail | None
    rubric: RubricRef | None
    reward_range: RewardRange | None = None
    teacher: TeacherScore | None
    rollouts: list[RolloutScore]

    @property
    def rewards(self) -> list[float | None]:
        """The rewards of the rollouts, in the order sent; `None` where it is not known."""
        return [rollout.reward for rollout in self.rollouts]

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show the first rewards."""
        shown: list[Any] = [
            None if reward is None else round(reward, 3) for reward in self.rewards[:8]
        ]
        if len(self.rollouts) > len(shown):
            shown.append(...)
        return [("id", self.id), ("status", self.status), ("rewards", shown)]

    def _repr_html_(self) -> str:
        return group_html(self)


class ScoreCounts(Wire):
    """How many rollouts have a reward."""

    rollouts: int
    scored: int
    unscored: int


class ScoreBatch(Wire):
    """The answer of `POST /v1/scores`: every group in the order sent.

    `batch[0]` and `batch["id"]` are one group; `len(batch)` counts groups, and to iterate over it
    is to iterate over them.
    """

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

    @property
    def rewards(self) -> list[list[float | None]]:
        """The rewards of each group, in the order sent; `None` where one is not known."""
        return [group.rewards for group in self.groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[GroupScore]:  # type: ignore[override]  # pydantic's: fields
        return iter(self.groups)

    def __contains__(self, group: Any) -> bool:
        return any(group == each.id or group == each for each in self.groups)

    @overload
    def __getitem__(self, group: str | int) -> GroupScore: ...

    @overload
    def __getitem__(self, group: slice) -> list[GroupScore]: ...

    def __getitem__(self, group: str | int | slice) -> GroupScore | list[GroupScore]:
        if not isinstance(group, str):
            return self.groups[group]
        for each in self.groups:
            if each.id == group:
                return each
        raise KeyError(group)

    def to_frame(self) -> "DataFrame":
        """Return a pandas data frame with a row for each rollout.

        Its columns are `group`, `rollout`, `reward` (NaN where it is not known), `reason`,
        `feedback` and `rubric_id`. Raises `ModuleNotFoundError` without pandas.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_frame needs pandas: pip install pandas", name="pandas"
            ) from error
        frame = pandas.DataFrame(
            [
                (
                    group.id,
                    rollout.id,
                    rollout.reward,
                    None if rollout.reason is None else rollout.reason.value,
                    rollout.feedback,
                    None if group.rubric is None else group.rubric.id,
                )
                for group in self.groups
                for rollout in group.rollouts
            ],
            columns=["group", "rollout", "reward", "reason", "feedback", "rubric_id"],
        )
        return frame.astype({"reward": "float64"})

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show the counts: pydantic's hook for `repr` and `str`."""
        return [
            ("groups", len(self.groups)),
            ("rollouts", self.counts.rollouts),
            ("scored", self.counts.scored),
            *sorted(self.reasons.items()),
        ]

    def _repr_html_(self) -> str:
        return batch_html(self)


class GroupProgress(Wire):
    """How much of its group a rollout was scored with.

    `received` counts the rollouts that were scored together; while there is no score, those that
    have arrived. `complete`: all of them. `late`: this rollout came after its group was scored, and
    was scored alone by the group's rubric.
    """

    key: str
    size: int
    received: int
    complete: bool
    late: bool = False


class ScoredRollout(Wire):
    """The answer of `POST /v1/rollouts`: one rollout, and what it shares with its group."""

    object: Literal["score.rollout"] = "score.rollout"
    group: GroupProgress
    error: ErrorDetail | None
    rubric: RubricRef | None
    reward_range: RewardRange | None
    teacher: TeacherScore | None
    rollout: RolloutScore

    @property
    def reward(self) -> float | None:
        """The reward; `None` where it is not known."""
        return self.rollout.reward

    def __repr_args__(self) -> list[tuple[str, Any]]:
        """Show the rollout and how whole its group was."""
        progress = f"{self.group.received}/{self.group.size}"
        return [*self.rollout.__repr_args__(), ("group", self.group.key), ("received", progress)]


class ScoreSummary(Wire):
    """The last NDJSON line."""

    object: Literal["score.summary"] = "score.summary"
    counts: ScoreCounts
    usage: Usage


class Heartbeat(Wire):
    """An NDJSON line that keeps the connection alive."""

    object: Literal["heartbeat"] = "heartbeat"
