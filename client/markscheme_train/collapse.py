"""Rules that see a run collapse. Pure Python: the numbers of a batch in, findings out.

A rule looks at means over the last ten batches, and compares them with those over the first ten.
Three rules have a second, looser limit that holds once the reward has lost 30 % of its best: a
healthy run too makes its responses shorter, and more alike. `benchmarks/training/collapse.py`
measures how soon they see a collapse, and how often they are wrong.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from statistics import fmean
from typing import Any, Literal

OnCollapse = Literal["warn", "stop", "freeze_teacher", "grpo"]

WINDOW = 10
"""Batches that a mean is over."""
MIN_KNOWN = WINDOW // 2
"""Batches of a window in which a figure must be known."""

FALLEN = 0.3
"""Share of its best that the reward has lost when it counts as fallen."""
SHORT, SHORT_FALLEN = 0.1, 0.5
"""Share of the first length below which responses are short, in general and at a fallen reward."""
REPEATED, REPEATED_FALLEN = 0.4, 0.2
"""Rise of the share of repeated n-grams above which responses repeat themselves, likewise."""
ALIKE, ALIKE_FALLEN = 0.1, 0.5
"""Share of the first share of distinct n-grams below which responses are alike, likewise."""
WORSE, WORSE_FALLEN = 0.1, 0.02
"""Nats a token by which the self-teacher rates successes lower than the student does, likewise. In
general it must also rate them no better than failures."""
EQUAL = 5e-4
"""Divergence in nats a token below which the self-teacher equals the student."""
UNROUTED, FAILING = 0.01, 0.25
"""Less than this share of rollouts is routed, while at least that share fails."""


class Rule(StrEnum):
    """A way in which a run collapses."""

    SHORT = "short"
    TEMPLATE = "template"
    TEACHER_WORSE = "teacher_worse"
    TEACHER_EQUAL = "teacher_equal"
    NOTHING_ROUTED = "nothing_routed"


AGAIN = "begin again, from an earlier checkpoint if need be, with"
WITH_TEACHER = "with a self-teacher go on with on_collapse: grpo, or begin again with"
ADVICE = {
    Rule.SHORT: f"Lower learning_rate; {WITH_TEACHER} min_demonstration_tokens or self_teacher: "
    "frozen.",
    Rule.TEMPLATE: f"Lower learning_rate; {WITH_TEACHER} self_teacher: frozen.",
    Rule.TEACHER_WORSE: f"Go on with on_collapse: grpo, or {AGAIN} self_teacher: frozen or a lower "
    "learning_rate. If it was so from the start, what is shown does not help this model: use the "
    "preset grpo or ropd.",
    Rule.TEACHER_EQUAL: f"It teaches nothing more: go on with on_collapse: grpo, or {AGAIN} "
    "self_teacher: frozen or rubric_feedback.",
    Rule.NOTHING_ROUTED: f"No group holds a response that may be shown: {AGAIN} rubric_feedback, "
    "teacher_demonstration or a lower success_threshold.",
}
"""What to do."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one batch showed; `None` where it was not measured.

    Attributes:
        reward: Mean reward.
        length: Mean tokens of a rollout.
        repetition: Share of repeated n-grams within rollouts, 0 to 1.
        distinct: Share of distinct n-grams in rollouts of different prompts, 0 to 1.
        failed: Share of rollouts that failed.
        routed: Share of rollouts that learn from the self-teacher.
        divergence: Of student and self-teacher, in nats a token.
        gain_failure: Log-probability of failures by the self-teacher minus that by the student,
            in nats a token.
        gain_success: The same of successes.
    """

    reward: float | None = None
    length: float | None = None
    repetition: float | None = None
    distinct: float | None = None
    failed: float | None = None
    routed: float | None = None
    divergence: float | None = None
    gain_failure: float | None = None
    gain_success: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that is met for the first time.

    Attributes:
        rule: The rule.
        since: First step of the ten batches in which it was seen.
        message: What was seen, since when, and what to do.
    """

    rule: Rule
    since: int
    message: str


class CollapseWatch:
    """Compares each batch with the run's start, and reports each rule once.

    Its state does not grow with the run; `state` and `restore` carry it over a checkpoint.

    Attributes:
        found: The rules that were met, with `Finding.since`.
    """

    def __init__(self) -> None:
        self.found: dict[Rule, int] = {}
        self._first: dict[str, list[float]] = {field.name: [] for field in fields(Figures)}
        self._last: list[tuple[int, Figures]] = []
        self._best_reward: float | None = None

    def observe(self, step: int, figures: Figures) -> list[Finding]:
        """Add the figures of the batch that ended with `step`; return what is new."""
        # The first values that are known of each figure, whichever batches they are of.
        for name, values in self._first.items():
            value = getattr(figures, name)
            if value is not None and len(values) < WINDOW:
                values.append(value)
        self._last = [*self._last, (step, figures)][-WINDOW:]
        if len(self._last) < WINDOW:
            return []
        reward = self._mean("reward")
        if reward is not None:
            self._best_reward = max(reward, reward if (b := self._best_reward) is None else b)
        since = self._last[0][0]
        findings = [
            Finding(rule, since, f"{seen} (means of steps {since} to {step}). {ADVICE[rule]}")
            for rule, seen in self._met()
            if rule not in self.found
        ]
        self.found |= {finding.rule: since for finding in findings}
        return findings

    def length_ratio(self, figures: Figures) -> float | None:
        """Return the mean length of a batch over that of the first ones."""
        first = self._first["length"]
        # `any`: a mean of 0 cannot be divided by.
        return figures.length / fmean(first) if figures.length is not None and any(first) else None

    def state(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "found": self.found,
            "first": self._first,
            "last": [[step, asdict(figures)] for step, figures in self._last],
            "best_reward": self._best_reward,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.found = {Rule(name): step for name, step in state["found"].items()}
        self._first |= {name: list(values) for name, values in state["first"].items()}
        self._last = [(step, Figures(**figures)) for step, figures in state["last"]]
        self._best_reward = state["best_reward"]

    def _met(self) -> Iterator[tuple[Rule, str]]:
        """Yield the rules that are met now, with what was seen."""
        fallen = self._reward_has_fallen()
        length, first_length = self._mean("length"), self._start("length")
        if _below(length, first_length, SHORT_FALLEN if fallen else SHORT):
            yield (
                Rule.SHORT,
                f"Responses have become short: {length:.0f} tokens, {first_length:.0f} at first",
            )
        repetition, first_repetition = self._mean("repetition"), self._start("repetition")
        distinct, first_distinct = self._mean("distinct"), self._start("distinct")
        if (
            repetition is not None
            and first_repetition is not None
            and repetition - first_repetition > (REPEATED_FALLEN if fallen else REPEATED)
        ):
            yield (
                Rule.TEMPLATE,
                f"Responses repeat themselves: {repetition:.0%} of their n-grams occurred before, "
                f"{first_repetition:.0%} at first",
            )
        elif _below(distinct, first_distinct, ALIKE_FALLEN if fallen else ALIKE):
            yield (
                Rule.TEMPLATE,
                f"Responses to different prompts are alike: {distinct:.0%} of their n-grams are "
                f"distinct, {first_distinct:.0%} at first",
            )
        success, failure = self._mean("gain_success"), self._mean("gain_failure")
        if success is not None and success < -WORSE_FALLEN:
            seen = (
                "The self-teacher is worse than the student: its log-probability of successes is "
                f"{-success:.3f} nats a token lower"
            )
            if failure is not None and success <= failure and success < -WORSE:
                yield Rule.TEACHER_WORSE, f"{seen}, that of failures {-failure:.3f}"
            elif fallen:
                yield (
                    Rule.TEACHER_WORSE,
                    f"{seen}, and the mean reward has fallen from {self._best_reward:.2f} to "
                    f"{self._mean('reward'):.2f}",
                )
        divergence = self._mean("divergence")
        if divergence is not None and divergence < EQUAL:
            yield (
                Rule.TEACHER_EQUAL,
                f"The self-teacher equals the student: they differ by {divergence:.1e} nats a "
                "token",
            )
        routed, failed = self._mean("routed"), self._mean("failed")
        if routed is not None and failed is not None and routed < UNROUTED and failed >= FAILING:
            yield (
                Rule.NOTHING_ROUTED,
                f"Next to nothing learns from the self-teacher: {routed:.1%} of the rollouts, "
                f"while {failed:.0%} fail",
            )

    def _reward_has_fallen(self) -> bool:
        reward, best = self._mean("reward"), self._best_reward
        # `abs`, because rewards may be negative.
        return reward is not None and best is not None and reward < best - FALLEN * abs(best)

    def _mean(self, name: str) -> float | None:
        """Return the mean over the last batches, or `None` where too few are known."""
        known = [value for _, each in self._last if (value := getattr(each, name)) is not None]
        return fmean(known) if len(known) >= MIN_KNOWN else None

    def _start(self, name: str) -> float | None:
        """Return the mean over the first batches, or `None` while too few are known."""
        values = self._first[name]
        return fmean(values) if len(values) >= MIN_KNOWN else None


def _below(value: float | None, first: float | None, share: float) -> bool:
    return value is not None and first is not None and value < share * first
