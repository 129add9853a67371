"""The figures of a run that the rules read: counts and sums by step, no texts.

Steps are numbered as the trainer sent them. An unknown value is left out of every sum; it never
counts as 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from markscheme.vocabulary import BudgetWindow

COLLAPSE = "collapse/"
"""Prefix of the trainer's metrics that say that its collapse guard met a rule."""
COLLAPSE_FIGURES: Mapping[str, str] = {
    "short": "completions/mean_length",
    "template": "completions/repetition",
    "teacher_worse": "distillation/teacher_gain_success",
    "teacher_equal": "distillation/divergence",
    "nothing_routed": "distillation/routed_share",
}
"""The metric that each rule of the guard looks at."""
TRAINER_METRICS = (
    *(COLLAPSE + rule for rule in COLLAPSE_FIGURES),
    *COLLAPSE_FIGURES.values(),
)
"""The trainer's metrics that findings need; others may be left out of `StepFigures.metrics`."""


class PairedRewards(NamedTuple):
    """Two rewards of the same rollouts.

    `rollouts`: those with both. `reward_sum`: their rewards by the training judge. `other_sum`:
    the other rewards.
    """

    rollouts: int = 0
    reward_sum: float = 0.0
    other_sum: float = 0.0


class LengthReward(NamedTuple):
    """How length and reward vary within groups.

    Over rollouts with known reward and length, x being words and y rewards, of groups with at least
    two such rollouts: `rollouts` and `groups` count them; `xx`, `yy` and `xy` are sums over groups
    of Σx² - (Σx)²/n, Σy² - (Σy)²/n and Σxy - ΣxΣy/n.
    """

    rollouts: int = 0
    groups: int = 0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0


class StepFigures(NamedTuple):
    """A step of a run.

    Attributes:
        step: Its number, as the trainer sent it.
        rollouts: Rollouts of the step's groups.
        reasons: Those without a known reward, by reason.
        reward_sum: Sum of the known rewards.
        reward_squares: Sum of their squares.
        truncated: Rollouts that the token limit cut off.
        comparable_groups: Groups with two or more known rewards.
        flat_groups: Those of them in which all known rewards are equal.
        words: Sum of the rollouts' words; `None` where one of them is not known.
        teacher: Rollouts with known rewards in groups with known teacher rewards; the other reward
            is the group's mean teacher reward.
        second_judge: Rollouts that a second judge scored too; the other reward is that judge's.
        length_reward: Length and reward within groups.
        metrics: The trainer's metrics by name, those of `TRAINER_METRICS` at least.
    """

    step: int
    rollouts: int = 0
    reasons: Mapping[str, int] = MappingProxyType({})
    reward_sum: float = 0.0
    reward_squares: float = 0.0
    truncated: int = 0
    comparable_groups: int = 0
    flat_groups: int = 0
    words: int | None = None
    teacher: PairedRewards = PairedRewards()
    second_judge: PairedRewards = PairedRewards()
    length_reward: LengthReward = LengthReward()
    metrics: Mapping[str, float | None] = MappingProxyType({})

    @property
    def unknown(self) -> int:
        """Rollouts without a known reward."""
        return sum(self.reasons.values()) if self.reasons else 0


@dataclass(frozen=True, slots=True)
class StepColumns:
    """The steps of a run in order, as columns: a run has thousands of steps.

    Attributes:
        steps: Their numbers; each other column has as many entries, unless it says otherwise.
        rollouts: As in `StepFigures`, and so are others of the same name.
        unknown: Rollouts without a known reward.
        reasons: Of the steps that have such rollouts, by step.
        teacher: A column of each field of `PairedRewards`.
        second_judge: The steps in which a second judge scored, and such columns of those.
        length_reward: A column of each field of `LengthReward`.
        metrics: Of the steps that have any, by step.
    """

    steps: Sequence[int]
    rollouts: Sequence[int]
    unknown: Sequence[int]
    reasons: Mapping[int, Mapping[str, int]]
    reward_sum: Sequence[float]
    reward_squares: Sequence[float]
    truncated: Sequence[int]
    comparable_groups: Sequence[int]
    flat_groups: Sequence[int]
    words: Sequence[int | None]
    teacher: Sequence[Sequence[float]]
    second_judge: tuple[Sequence[int], Sequence[Sequence[float]]]
    length_reward: Sequence[Sequence[float]]
    metrics: Mapping[int, Mapping[str, float | None]]

    @classmethod
    def of(cls, steps: Iterable[StepFigures]) -> "StepColumns":
        """Return the columns of steps in any order."""
        rows = sorted(steps, key=lambda step: step.step)
        numbers = [row.step for row in rows]
        teacher, second, length = (
            tuple(zip(*column, strict=True)) or ((),) * width
            for column, width in (
                ([row.teacher for row in rows], 3),
                ([row.second_judge for row in rows], 3),
                ([row.length_reward for row in rows], 5),
            )
        )
        return cls(
            numbers,
            [row.rollouts for row in rows],
            [row.unknown for row in rows],
            {row.step: row.reasons for row in rows if row.reasons},
            [row.reward_sum for row in rows],
            [row.reward_squares for row in rows],
            [row.truncated for row in rows],
            [row.comparable_groups for row in rows],
            [row.flat_groups for row in rows],
            [row.words for row in rows],
            teacher,
            (numbers, second),
            length,
            {row.step: row.metrics for row in rows if row.metrics},
        )


@dataclass(frozen=True, slots=True)
class CriterionFigures:
    """A criterion over a run, in all rubrics that have its text.

    Attributes:
        key: The criterion's key.
        text: Its text.
        points: Its points.
        steps: The steps in which it was judged, in any order.
        met: How many rollouts met it, by step.
        judged: Of how many with a known verdict.
        teacher_met: How many of `teacher_judged` teacher responses of the run met it.
        teacher_judged: Teacher responses with a known verdict.
        reasked: Verdicts of the run that a judge was asked for again.
        flipped: Those of them that were different the second time.
    """

    key: str
    text: str
    points: float
    steps: Sequence[int] = ()
    met: Sequence[int] = ()
    judged: Sequence[int] = ()
    teacher_met: int = 0
    teacher_judged: int = 0
    reasked: int = 0
    flipped: int = 0


@dataclass(frozen=True, slots=True)
class PairFigures:
    """Two criteria of the same rubric, over rollouts of the run's last 200 steps that have both.

    Attributes:
        first: Key of the one that comes first in the rubric.
        second: Key of the other.
        both: Rollouts that met both.
        only_first: Rollouts that met the first alone.
        only_second: Rollouts that met the second alone.
        neither: Rollouts that met neither.
    """

    first: str
    second: str
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0


@dataclass(frozen=True, slots=True)
class BudgetFigures:
    """A budget that the run spends from. Money is in dollars.

    Attributes:
        window: What it is for.
        spent_usd: What was spent of it in its window, by whomever.
        soft_usd: The limit that warns.
        hard_usd: The limit that stops.
        ends_in_s: Seconds to the end of its window; `None` for a total.
        own: Whether it is this run's own, not its team's.
    """

    window: BudgetWindow
    spent_usd: float
    soft_usd: float | None = None
    hard_usd: float | None = None
    ends_in_s: float | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A run.

    Attributes:
        steps: Its steps, as columns or in any order.
        criteria: Its criteria, in any order.
        pairs: Pairs of criteria.
        running: Whether it is still running; a run that is not spends no more.
        planned_steps: Steps that it is planned to take, if known.
        cost_usd: What its judging cost so far; unpriced calls count nothing.
        seconds_per_step: Median seconds between its steps, if known.
        budgets: Its budget and its team's.
    """

    steps: StepColumns | Sequence[StepFigures] = ()
    criteria: Sequence[CriterionFigures] = ()
    pairs: Sequence[PairFigures] = ()
    running: bool = True
    planned_steps: int | None = None
    cost_usd: float = 0.0
    seconds_per_step: float | None = None
    budgets: Sequence[BudgetFigures] = ()
