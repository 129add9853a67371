"""Replays: the stored rollouts of a run, scored again under another rubric, judge, view or mode.

A replay's scores are shown beside the run's own and change nothing of it. A figure that is not
known is null.
"""

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from markscheme.schema.base import Identifier, JudgeName, Wire
from markscheme.schema.rubrics import RequestedView
from markscheme.schema.runs import MeanInterval, Share
from markscheme.vocabulary import Clamp, ReplayState, Thinking, VerifyMode, View


class ReplayRequest(Wire):
    """`POST /v1/replays`: what to score again, and how. What is left out stays as it was.

    `thinking` and `clamp` are not stored with a run: give those that it was scored with.
    """

    run_id: Identifier
    rubric_id: Identifier | None = Field(
        default=None,
        description="Score the groups of its prompt, and those of its other versions, under this "
        "rubric; without it each group keeps its own",
    )
    judge: JudgeName | None = Field(
        default=None, description="A judge of the service by name; default: the one that scored"
    )
    view: RequestedView = None
    verify: VerifyMode | None = Field(
        default=None, description="How the judge is asked; default: as the group was scored"
    )
    thinking: Thinking = "auto"
    clamp: Clamp = "zero"

    @model_validator(mode="after")
    def _changes_something(self) -> "ReplayRequest":
        if not (self.rubric_id or self.judge or self.view or self.verify):
            raise ValueError("say what to change: give rubric_id, judge, view or verify")
        return self


class ReplayEstimate(Wire):
    """`GET /v1/replays/estimate`: what a replay takes at most, before it starts.

    Of a long run, `sampled_groups` groups at equal distances were looked at, and all other figures
    are scaled up from them, so that none is a bound; of a shorter one all were.
    `cached_verdicts`: verdicts that are stored already and cost nothing. `calls` counts each
    question once; one whose reply cannot be used is asked again, up to two times. `prompt_tokens`
    and `completion_tokens` are about what the calls take. `max_usd` is what they cost if every
    prompt and reply is as long as it can be; null where a judge has no prices.
    """

    object: Literal["replay.estimate"] = "replay.estimate"
    run_id: str
    groups: int
    sampled_groups: int
    rollouts: int
    cached_verdicts: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    max_usd: float | None


class Replay(Wire):
    """A replay and how far it is.

    `groups` counts all, `done` those that are worked off. `skipped` are those among them that could
    not be scored: their texts were pruned, their rubric is no longer visible, or the service failed
    at them five times. `paused`: `reason` says what it waits for, and it goes on by itself.
    `cost_usd` is what its calls cost so far, without `unpriced_calls`; it is not part of the run's
    cost. `saved_usd` is what its `cached_verdicts` had cost.
    """

    object: Literal["replay"] = "replay"
    id: str
    run_id: str
    rubric_id: str | None
    judge: str | None
    view: View | None
    verify: VerifyMode | None
    thinking: Thinking
    clamp: Clamp
    state: ReplayState
    reason: str | None
    groups: int
    done: int
    skipped: int
    calls: int
    cost_usd: float
    unpriced_calls: int
    cached_verdicts: int
    saved_usd: float
    created_at: datetime
    changed_at: datetime


class CriterionFlips(Wire):
    """How often a criterion was met before and after, and how often its verdict flipped.

    `pairs`: rollouts with both verdicts. `lost`: met before and not after; `gained`: the reverse.
    `p`: McNemar's exact test of `lost` against `gained`; null without pairs, as for a criterion
    that only one of the rubrics has.
    """

    key: str
    text: str
    met_before: int
    judged_before: int
    met_after: int
    judged_after: int
    pairs: int
    lost: int
    gained: int
    p: Share | None


class ReplayComparison(Wire):
    """The rewards of the same rollouts before and after; `rollouts` have both.

    `difference` is the mean reward after minus before. `rank_agreement` is the mean over
    `rank_groups` groups of Kendall's tau-b, 1 where all order their rollouts alike. `sign_changes`
    is the share of rollouts whose advantage changes its sign, also from or to 0.
    """

    rollouts: int
    unknown_before: int
    unknown_after: int
    before: float | None
    after: float | None
    difference: MeanInterval
    rank_agreement: MeanInterval
    rank_groups: int
    sign_changes: MeanInterval
    criteria: list[CriterionFlips]


class ReplayDetail(Replay):
    """`GET /v1/replays/{id}`: a replay with the comparison of what is done so far."""

    comparison: ReplayComparison


class ReplayList(Wire):
    """`GET /v1/replays`: a page of replays, the newest first."""

    object: Literal["list"] = "list"
    data: list[Replay]
    has_more: bool
