"""Training runs as people look at them: steps, criteria, findings, groups.

Every figure of the pages is in one of these answers. Steps are those that the trainer sent;
`display_step` counts them from 1. A figure that is not known is null.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from markscheme.schema.base import (
    MAX_TEXT_LENGTH,
    Identifier,
    Message,
    ShortText,
    Text,
    Wire,
)
from markscheme.schema.rubrics import Criterion
from markscheme.schema.scores import Reward, RubricRef
from markscheme.vocabulary import (
    FindingKind,
    FindingLevel,
    GroupSort,
    ReusePolicy,
    RunState,
    UnscoredReason,
    VerifyMode,
)

Share = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0, le=2**31 - 1)]
FactText = Annotated[Text, StringConstraints(max_length=MAX_TEXT_LENGTH)]
FactNumber = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Facts = Annotated[
    dict[Identifier, FactText | FactNumber | float | bool | None], Field(max_length=64)
]
Metrics = Annotated[dict[Identifier, float | None], Field(max_length=256)]


def display_step(step: int, first_step: int) -> int:
    """Return the number of a step for a person: counted from 1.

    `first_step`: the first step of the run as its trainer sent it, 0 or 1.
    """
    return step + 1 if first_step == 0 else step


class RunPut(Wire):
    """`PUT /v1/runs/{id}`: say what a run is. Fields that are left out stay as they are."""

    state: Literal["running", "finished", "stopped", "failed"] | None = None
    reason: ShortText | None = Field(
        default=None, description="Why it stopped or failed; a state without one has none"
    )
    steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Steps that the run is planned to take"
    )
    facts: Facts | None = Field(
        default=None, description="What to show of it, such as student, preset, learning rate"
    )

    @field_validator("state", "facts")
    @classmethod
    def _known(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null; leave it out to keep what is stored")
        return value


class StepRecord(Wire):
    """The trainer's own metrics of a step; they appear beside the rewards of the same step."""

    step: Step
    metrics: Metrics


class RunRecords(Wire):
    """`POST /v1/runs/{id}/records`: metrics of steps. A step that is sent again replaces itself."""

    records: Annotated[list[StepRecord], Field(min_length=1, max_length=1000)]


class FindingCounts(Wire):
    """How many findings a run has, by level."""

    alarm: int = 0
    watch: int = 0


class RunSummary(Wire):
    """A run in a list.

    `reward_first` and `reward_now` are means over the known rewards of the first and the last tenth
    of its steps (at least one, at most 100). `teacher` is the mean reward of teacher responses in
    the same groups as `reward_now`. `curve` has the mean reward of at most 40 spans of steps, null
    where none is known. `findings` is null in a list until they are known.
    """

    object: Literal["run"] = "run"
    id: str
    team: str
    state: RunState
    reason: str | None
    facts: dict[str, str | int | float | bool | None]
    steps: int | None
    first_step: int | None
    last_step: int | None
    created_at: datetime
    last_scored_at: datetime | None
    groups: int
    rollouts: int
    unscored: int
    reward_first: float | None
    reward_now: float | None
    teacher: float | None
    curve: list[float | None]
    cost_usd: float
    saved_usd: float
    unpriced_calls: int
    findings: FindingCounts | None


class RunList(Wire):
    """`GET /v1/runs`: the runs of the caller's team, most recently active first."""

    object: Literal["list"] = "list"
    data: list[RunSummary]
    has_more: bool


class RunDetail(RunSummary):
    """`GET /v1/runs/{id}`.

    `second_judge` and `second_judge_now`: how many rollouts a second judge scored, and its mean
    reward of those in the last tenth. `pruned_until`: steps before it have figures but no texts.
    """

    reasons: dict[str, int]
    judges: list[str]
    rubrics: int
    truncated: int
    flat_groups: int
    comparable_groups: int = Field(description="Groups with two or more different known rollouts")
    second_judge: int
    second_judge_now: float | None
    projected_usd: float | None = Field(description="Cost at the planned last step, at this rate")
    pruned_until: int | None


class StepSpan(Wire):
    """Rewards of a span of steps, `first_step` to `last_step`.

    Means are over known rewards of rollouts, not over groups. `low` and `high`: the 10th and 90th
    percentile of rewards. `length_reward`: Pearson's correlation of length and reward within
    groups, pooled. `words`: mean words of a rollout. `metrics`: means of the trainer's own.
    """

    first_step: int
    last_step: int
    groups: int
    rollouts: int
    unscored: int
    reasons: dict[str, int]
    truncated: int
    reward: float | None
    low: float | None
    high: float | None
    teacher: float | None
    second_judge: float | None
    words: float | None
    length_reward: float | None
    flat_groups: int
    comparable_groups: int
    metrics: dict[str, float | None]


class StepList(Wire):
    """`GET /v1/runs/{id}/steps`: spans of steps in order; steps nobody scored are in none."""

    object: Literal["list"] = "list"
    first_step: int | None
    data: list[StepSpan]


class CriterionShare(Wire):
    """How many of `judged` responses met a criterion; `unknown` ones are not among them."""

    met: int
    judged: int
    unknown: int = 0


class CriterionSpan(CriterionShare):
    """The same in one span of steps."""

    first_step: int
    last_step: int


class CriterionHistory(Wire):
    """A criterion over a run.

    `key` is the same for the same text in several rubrics, which `rubrics` lists. `first` and `now`
    are its first and its last window; `teacher` its teacher responses. Spans in which it was not
    asked are left out.
    """

    key: str
    criterion_id: str
    text: str
    category: str | None
    points: float
    rubrics: list[str]
    total: CriterionShare
    first: CriterionShare
    now: CriterionShare
    teacher: CriterionShare
    spans: list[CriterionSpan]
    findings: list[FindingKind]


class CategoryHistory(Wire):
    """All criteria of a category over a run, added up. Windows and spans are as of a criterion."""

    category: str | None
    criteria: int
    total: CriterionShare
    first: CriterionShare
    now: CriterionShare
    teacher: CriterionShare
    spans: list[CriterionSpan]


class CriterionList(Wire):
    """`GET /v1/runs/{id}/criteria`: those with findings first, then the most asked.

    `categories` add up all criteria of the run, not only those of this page.
    """

    object: Literal["list"] = "list"
    first_step: int | None
    last_step: int | None
    categories: list[CategoryHistory]
    data: list[CriterionHistory]
    total: int
    has_more: bool


class GroupFilter(Wire):
    """Which groups show a finding: the query of `GET /v1/runs/{id}/groups`."""

    first_step: int | None = None
    last_step: int | None = None
    criterion: str | None = None
    sort: GroupSort = "newest"


class Finding(Wire):
    """Something about a run that a person should look at.

    `sentence` says it with its figures. `since_step`: the step at which it began, for a person
    (from 1). `values`: the figures of the sentence. `groups`: where the proof is.
    """

    object: Literal["finding"] = "finding"
    kind: FindingKind
    level: FindingLevel
    sentence: str
    since_step: int | None
    criterion: str | None = Field(description="The key of the criterion, if it is about one")
    values: dict[str, float | int | str | None]
    groups: GroupFilter


class FindingList(Wire):
    """`GET /v1/runs/{id}/findings`: alarms first."""

    object: Literal["list"] = "list"
    data: list[Finding]


class RolloutPoint(Wire):
    """One rollout of a group in a list."""

    id: str
    reward: Reward | None
    reason: UnscoredReason | None
    truncated: bool
    words: int | None


class RunGroup(Wire):
    """A group of a run in a list. `prompt` is the first 300 characters of what was asked."""

    object: Literal["run.group"] = "run.group"
    id: str
    group_id: str
    step: int | None
    created_at: datetime
    prompt: str
    rubric_id: str
    judge: str | None
    mean: float | None
    spread: float | None
    teacher: float | None
    words: float | None
    unscored: int | None
    rollouts: list[RolloutPoint]


class RunGroupList(Wire):
    """`GET /v1/runs/{id}/groups`."""

    object: Literal["list"] = "list"
    first_step: int | None
    data: list[RunGroup]
    has_more: bool


class MeanInterval(Wire):
    """A mean with its 95 % interval over groups, or over prompts; null where they are too few."""

    value: float | None
    low: float | None
    high: float | None


class ComparedReward(Wire):
    """The mean of a run's known rewards in a span; `rollouts` is 0 where it has no step there."""

    reward: float | None
    rollouts: int
    unscored: int


class ComparedSpan(Wire):
    """A span of steps, and the rewards of each run in it."""

    first_step: int
    last_step: int
    runs: list[ComparedReward]


class RunDifference(Wire):
    """The reward of `run` minus that of the first run, over the prompts that both scored.

    A prompt counts once, with the mean reward of the last group of it in each run whose reward is
    known. `prompts` have one in both runs, `unknown` in one or none. `first` and `reward` are the
    means over `prompts` of the first run and of this one. `same_rubric` prompts were scored by the
    same rubric and judge in both runs; `same_rubric_difference` is the mean over these. An interval
    takes ten prompts.
    """

    run: str
    prompts: int
    unknown: int
    first: float | None
    reward: float | None
    difference: MeanInterval
    same_rubric: int
    same_rubric_difference: MeanInterval


class ComparedCriterion(Wire):
    """A criterion that two or more of the runs were asked.

    `now` has its last window in each run, null where the run was not asked. Text, category and
    points are those of the first run that has it.
    """

    key: str
    criterion_id: str
    text: str
    category: str | None
    points: float
    rubric_id: str
    now: list[CriterionShare | None]


class ComparedCategory(Wire):
    """All criteria of a category, of which each run may have others.

    `criteria` says how many they are in each run, `now` has their last window in each.
    """

    category: str | None
    criteria: list[int]
    now: list[CriterionShare | None]


class PromptGroup(Wire):
    """The last group of a prompt in a run, of those with a known reward if there is one.

    `step` is the one that the trainer sent.
    """

    id: str
    step: int
    rubric_id: str
    judge: str | None
    mean: float | None


class ComparedPrompt(Wire):
    """A prompt that the first run shares with others: its first 300 characters and its groups.

    `groups` has null where a run has none of it.
    """

    prompt_key: str
    prompt: str
    groups: list[PromptGroup | None]


class RunComparison(Wire):
    """`GET /v1/runs:compare`: runs beside each other, all lists in the order of `runs`.

    `differences` has an entry for each run after the first, with which all are compared. Steps of
    `spans` count from 1, whichever number the trainers begin with. `criteria` and `prompts` begin
    with the greatest loss against the first run; `criteria_total` and `prompts_total` count all,
    `own_criteria` those that only one run was asked. `pruned_groups`: groups of each run that are
    no longer there to be paired.
    """

    object: Literal["run.comparison"] = "run.comparison"
    runs: list[RunSummary]
    spans: list[ComparedSpan]
    differences: list[RunDifference]
    categories: list[ComparedCategory]
    criteria: list[ComparedCriterion]
    criteria_total: int
    own_criteria: int
    prompts: list[ComparedPrompt]
    prompts_total: int
    pruned_groups: list[int]
    has_more: bool = Field(description="There are more prompts than these")


class GroupVerdict(Wire):
    """A verdict of a stored group.

    `met` is null where it is not known or does not apply (`applicable` is false).
    `evidence_is_quotation`: `evidence` is text of the response, else a measurement.
    `second_judge_met`: what the second judge said, null if it was not asked or does not know.
    """

    criterion_id: str
    met: bool | None
    applicable: bool
    evidence: str | None
    evidence_is_quotation: bool
    rationale: str | None
    second_judge_met: bool | None


class GroupResponse(Wire):
    """A rollout or teacher response of a stored group.

    `text` is null where it was pruned; `messages` is set for a trajectory. `thought` is the part
    that was not judged. `advantage`: the reward minus the mean of the group's known rewards.
    """

    id: str
    text: str | None
    thought: str | None
    messages: list[Message] | None
    truncated: bool
    reward: float | None
    advantage: float | None
    reason: UnscoredReason | None
    words: int | None
    verdicts: list[GroupVerdict]
    second_judge_reward: float | None


class GroupDetail(Wire):
    """`GET /v1/groups/{id}`: one group with all that is known of it.

    `rubric` is null, and `criteria` are empty, if the team sees it no longer. `teachers` are the
    teacher responses that were judged beside the rollouts. `previous_id` and
    `next_id`: this prompt's groups before and after in the same run.
    """

    object: Literal["group"] = "group"
    id: str
    group_id: str
    run_id: str | None
    step: int | None
    first_step: int | None
    created_at: datetime
    reuse: ReusePolicy
    verify: VerifyMode
    prompt: list[Message]
    rubric: RubricRef | None
    criteria: list[Criterion]
    judge: str | None
    second_judge: str | None
    mean: float | None
    spread: float | None
    cached_verdicts: int | None
    saved_usd: float | None
    rollouts: list[GroupResponse]
    teachers: list[GroupResponse]
    previous_id: str | None
    next_id: str | None


class JudgePrompt(Wire):
    """`GET /v1/groups/{id}/judge-prompt`: what the judge was shown of one rollout.

    `messages` is null where the judge has no model, or has another template now; `reason` says
    which.
    """

    object: Literal["judge_prompt"] = "judge_prompt"
    rollout_id: str
    judge: str | None
    messages: list[Message] | None
    reason: str | None


class CriterionHealth(Wire):
    """A criterion of a rubric over all its use by the caller's team.

    `repeats`: ids of criteria of the same rubric whose verdicts are nearly the same.
    """

    criterion_id: str
    rollouts: CriterionShare
    teacher: CriterionShare
    repeats: list[str]
    findings: list[FindingKind]


class RubricHealth(Wire):
    """`GET /v1/rubrics/{id}/health`."""

    object: Literal["rubric.health"] = "rubric.health"
    rubric_id: str
    groups: int
    criteria: list[CriterionHealth]
    runs: list[str]


class JudgeAgreement(Wire):
    """How far the second judge agrees with a judge: Cohen's kappa with its 95 % interval."""

    second_judge: str
    verdicts: int
    agreement: Share | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None


class JudgeRepeats(Wire):
    """How often a judge that was asked again said something else, with Wilson's 95 % interval."""

    verdicts: int
    flipped: int
    share: Share | None
    low: Share | None
    high: Share | None


class JudgeReport(Wire):
    """A judge as the caller's team met it in the last 30 days.

    `name` is the configured judge's, null for one that is not configured any more; `judge` is the
    model and template as the ledger has it. Latencies are seconds of this process since its start.
    `cost_per_1000_verdicts_usd` counts the criteria that calls asked about; those of a call that
    sees all rollouts of a group count once.
    """

    name: str | None
    judge: str
    calls: int
    failed_calls: int
    failures: dict[str, int]
    unscored: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    breaker: Literal["closed", "open", "half_open"] | None
    cost_usd: float
    unpriced_calls: int
    cost_per_1000_verdicts_usd: float | None
    agreement: list[JudgeAgreement]
    repeats: JudgeRepeats | None


class JudgeReports(Wire):
    """`GET /v1/judges/report`: judges, and groups in which two differ most."""

    object: Literal["list"] = "list"
    data: list[JudgeReport]
    disagreements: list[RunGroup]
