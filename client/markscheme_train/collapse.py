"""Rules that see a run collapse. Pure Python: the numbers of a step in, findings out.

A rule compares means over the last ten batches with fixed limits, or with the run's own first ten.
`benchmarks/training/collapse.py` measures how soon the rules see a collapse, and that healthy runs
raise none.
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

SHORT = 1 / 3
"""Share of the first length below which responses have collapsed to short ones."""
REPEATED = 0.3
"""Rise of the share of repeated n-grams from which responses are a template."""
ALIKE = 1 / 2
"""Share of the first diversity below which responses are a template."""
WORSE = 0.02
"""Nats a token by which a self-teacher that is worse rates successes below the student."""
EQUAL = 1e-4
"""Divergence in nats a token below which self-teacher and student are equal."""
UNROUTED = 0.01
"""Share of routed rollouts below which nothing is routed."""
FAILING = 1 / 4
"""Share of failures from which something should be routed."""


class Rule(StrEnum):
    """A way in which a run collapses."""

    SHORT = "short"
    TEMPLATE = "template"
    TEACHER_WORSE = "teacher_worse"
    TEACHER_EQUAL = "teacher_equal"
    NOTHING_ROUTED = "nothing_routed"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one batch showed; `None` where it was not measured.

    Attributes:
        length: Mean tokens of a rollout.
        repetition: Share of repeated n-grams within rollouts, 0 to 1.
        distinct: Distinct n-grams over all, in rollouts of different prompts, 0 to 1.
        failed: Share of rollouts that failed.
        routed: Share of rollouts that learn from the self-teacher.
        divergence: Of student and self-teacher, in nats a token.
        gain_failure: Log-probability of failures by the self-teacher minus that by the student,
            in nats a token.
        gain_success: The same of successes.
    """

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


ADVICE = {
    Rule.SHORT: "Set min_demonstration_tokens, so that short responses are not shown, or self_teacher: frozen, and go back to a checkpoint from before.",
    Rule.TEMPLATE: "Lower learning_rate, or set self_teacher: frozen or trust_region, and go back to a checkpoint from before.",
    Rule.TEACHER_WORSE: "What is shown does not help this model: try rubric_feedback, a larger model, or the preset grpo or ropd.",
    Rule.TEACHER_EQUAL: "There is nothing left to learn from it: try self_teacher: frozen, a lower teacher_update_rate, or the preset grpo or ropd.",
    Rule.NOTHING_ROUTED: "No group holds a response that may be shown: set rubric_feedback or teacher_demonstration, lower success_threshold and demonstration_threshold, or go back to a checkpoint from before.",
}
"""What to do."""


class CollapseWatch:
    """Compares each batch with the run's start, and reports each rule once.

    Its state is bounded, and `state` and `restore` carry it over a checkpoint.

    Attributes:
        found: The first step of each rule that was met.
    """

    def __init__(self) -> None:
        self.found: dict[Rule, int] = {}
        self._start: dict[str, list[float]] = {field.name: [] for field in fields(Figures)}
        self._recent: list[tuple[int, Figures]] = []

    def observe(self, step: int, figures: Figures) -> list[Finding]:
        """Add the figures of the batch that ended with `step`; return what is new."""
        for name, values in self._start.items():
            value = getattr(figures, name)
            if value is not None and len(values) < WINDOW:
                values.append(value)
        self._recent = [*self._recent, (step, figures)][-WINDOW:]
        if len(self._recent) < WINDOW:
            return []
        since = self._recent[0][0]
        findings = [
            Finding(rule, since, f"{seen} on average since step {since}. {ADVICE[rule]}")
            for rule, seen in self._seen()
            if rule not in self.found
        ]
        self.found |= {finding.rule: since for finding in findings}
        return findings

    def length_ratio(self, figures: Figures) -> float | None:
        """Return the mean length of a batch over that of the first ones."""
        first = self._start["length"]
        return figures.length / fmean(first) if figures.length is not None and any(first) else None

    def state(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "found": self.found,
            "start": self._start,
            "recent": [[step, asdict(figures)] for step, figures in self._recent],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.found = {Rule(name): step for name, step in state["found"].items()}
        self._start |= {name: list(values) for name, values in state["start"].items()}
        self._recent = [(step, Figures(**figures)) for step, figures in state["recent"]]

    def _mean(self, name: str) -> float | None:
        """Return the mean of the window, or `None` where too little is known."""
        known = [v for _, figures in self._recent if (v := getattr(figures, name)) is not None]
        return fmean(known) if len(known) >= MIN_KNOWN else None

    def _seen(self) -> Iterator[tuple[Rule, str]]:
        """Yield the rules that are met now, with what was seen."""
        length, first_length = self._mean("length"), self._first("length")
        if length is not None and first_length and length < SHORT * first_length:
            yield (
                Rule.SHORT,
                f"Responses have collapsed to short ones: {length:.0f} tokens, {first_length:.0f} "
                "at the start,",
            )
        repetition, first_repetition = self._mean("repetition"), self._first("repetition")
        distinct, first_distinct = self._mean("distinct"), self._first("distinct")
        if (
            repetition is not None
            and first_repetition is not None
            and repetition > first_repetition + REPEATED
        ):
            yield (
                Rule.TEMPLATE,
                f"Responses repeat themselves: {repetition:.0%} of their n-grams occurred before, "
                f"{first_repetition:.0%} at the start,",
            )
        elif distinct is not None and first_distinct and distinct < ALIKE * first_distinct:
            yield (
                Rule.TEMPLATE,
                f"Responses to different prompts are alike: {distinct:.0%} of their n-grams are "
                f"distinct, {first_distinct:.0%} at the start,",
            )
        success, failure = self._mean("gain_success"), self._mean("gain_failure")
        if success is not None and success < -WORSE and (failure is None or success <= failure):
            compared = "" if failure is None else f" (failures {failure:+.3f})"
            yield (
                Rule.TEACHER_WORSE,
                f"The self-teacher is worse than the student: it rates successes {success:+.3f} "
                f"nats a token{compared}",
            )
        divergence = self._mean("divergence")
        if divergence is not None and divergence < EQUAL:
            yield (
                Rule.TEACHER_EQUAL,
                f"The self-teacher equals the student: they diverge by {divergence:.1e} nats a "
                "token",
            )
        routed, failed = self._mean("routed"), self._mean("failed")
        if routed is not None and failed is not None and routed < UNROUTED and failed >= FAILING:
            yield (
                Rule.NOTHING_ROUTED,
                f"Nothing learns from the self-teacher: {routed:.0%} of the responses, while "
                f"{failed:.0%} fail,",
            )

    def _first(self, name: str) -> float | None:
        """Return the mean of the first batches, or `None` until enough are known."""
        values = self._start[name]
        return fmean(values) if len(values) >= MIN_KNOWN else None
