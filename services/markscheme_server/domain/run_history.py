"""The figures of a run by step, and of its criteria, from the figures of its groups.

A figure that is not known is in no sum: it never counts as 0.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from operator import add
from typing import Any, NamedTuple

from markscheme_server.domain.group_figures import GroupFigures
from markscheme_server.domain.verdict import MET, NOT_MET, UNKNOWN

MAX_WINDOW = 100
"""Steps of the first and the last window of a run, at most; they are a tenth of its steps."""


class RunGroup(NamedTuple):
    """A stored group of a run. `pruned`: its texts are gone."""

    id: str
    step: int
    rubric_id: str
    judge: str | None
    pruned: bool
    figures: GroupFigures


class SecondVerdicts(NamedTuple):
    """What a second judge said of a rollout, beside what the first one had said."""

    group: str
    rollout: str
    judge: str
    step: int | None
    first_reward: float | None
    first_verdicts: str
    reward: float | None
    verdicts: str


class GroupSummary(NamedTuple):
    """What groups are listed and sorted by.

    `words`: the mean of its rollouts. `gap`: the mean difference between the rewards of the two
    judges, where there is a second one.
    """

    id: str
    step: int
    at: float
    rubric_id: str
    mean: float | None
    spread: float | None
    teacher: float | None
    words: float | None
    unscored: int
    gap: float | None


@dataclass(slots=True)
class StepTotals:
    """Counts and sums over the groups of one or more steps.

    Attributes:
        first: The first of the steps.
        last: The last.
        groups: Groups.
        rollouts: Their rollouts.
        reasons: Rollouts of unknown reward, by reason.
        rewards: The known rewards.
        truncated: Rollouts that hit the token limit.
        comparable: Groups with two or more different texts of known reward.
        flat: Those of them in which all rewards are equal.
        words: Sum of the known words, and how many are known.
        teacher: Sum of the teachers' known rewards, and how many are known.
        beside_teacher: Rollouts of known reward in groups with a known teacher reward, the sum of
            their rewards, and the sum of their groups' mean teacher rewards.
        second: Rollouts that both judges scored, the sum of their rewards, and of the second ones.
        length_reward: Rollouts, groups, xx, yy, xy: `group_figures.length_reward` added up.
        metrics: Sums of the trainer's own metrics, and in how many steps each is known.
    """

    first: int
    last: int
    groups: int = 0
    rollouts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rewards: list[float] = field(default_factory=list)
    truncated: int = 0
    comparable: int = 0
    flat: int = 0
    words: tuple[int, int] = (0, 0)
    teacher: tuple[float, int] = (0.0, 0)
    beside_teacher: tuple[int, float, float] = (0, 0.0, 0.0)
    second: tuple[int, float, float] = (0, 0.0, 0.0)
    length_reward: tuple[int, int, float, float, float] = (0, 0, 0.0, 0.0, 0.0)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add_group(self, group: GroupFigures, known: Sequence[float]) -> None:
        """Add a group; `known`: its known rewards."""
        self.groups += 1
        self.rollouts += len(group.rewards)
        self.rewards += known
        self.truncated += group.truncated
        if group.reasons:
            self.reasons.update(group.reasons)
        if group.spread is not None:
            self.comparable += 1
            self.flat += group.spread == 0
        words = [count for count in group.words if count is not None]
        total, count = self.words
        self.words = total + sum(words), count + len(words)
        if group.teacher_rewards and (teacher := group.teacher_known):
            mean = sum(teacher) / len(teacher)
            self.teacher = self.teacher[0] + sum(teacher), self.teacher[1] + len(teacher)
            rollouts, rewards, others = self.beside_teacher
            self.beside_teacher = (
                rollouts + len(known),
                rewards + sum(known),
                others + len(known) * mean,
            )
        if group.length_reward is not None:
            more, xx, yy, xy = group.length_reward
            rollouts, groups, xxs, yys, xys = self.length_reward
            self.length_reward = rollouts + int(more), groups + 1, xxs + xx, yys + yy, xys + xy

    def add_second(self, verdicts: SecondVerdicts) -> None:
        """Add what a second judge said of one of the rollouts."""
        if verdicts.reward is not None and verdicts.first_reward is not None:
            self.second = _plus(self.second, (1, verdicts.first_reward, verdicts.reward))

    def add_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Add the trainer's metrics of a step."""
        for name, value in metrics.items():
            total, count = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = (total, count) if value is None else (total + value, count + 1)

    def add(self, other: "StepTotals") -> None:
        """Add the totals of later steps."""
        self.last = max(self.last, other.last)
        self.groups += other.groups
        self.rollouts += other.rollouts
        if other.reasons:
            self.reasons.update(other.reasons)
        self.rewards += other.rewards
        self.truncated += other.truncated
        self.comparable += other.comparable
        self.flat += other.flat
        self.words = _plus(self.words, other.words)
        self.length_reward = _plus(self.length_reward, other.length_reward)
        if other.teacher[1]:
            self.teacher = _plus(self.teacher, other.teacher)
            self.beside_teacher = _plus(self.beside_teacher, other.beside_teacher)
        if other.second[0]:
            self.second = _plus(self.second, other.second)
        for name, (total, count) in other.metrics.items():
            before, known = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = before + total, known + count

    @property
    def unscored(self) -> int:
        """Rollouts of unknown reward."""
        return self.rollouts - len(self.rewards)

    @property
    def reward(self) -> float | None:
        """The mean of the known rewards."""
        return _ratio(sum(self.rewards), len(self.rewards))

    @property
    def teacher_reward(self) -> float | None:
        """The mean of the teachers' known rewards."""
        return _ratio(*self.teacher)

    @property
    def second_reward(self) -> float | None:
        """The mean of the second judge's known rewards."""
        return _ratio(self.second[2], self.second[0])

    @property
    def mean_words(self) -> float | None:
        """The mean of the known words of rollouts."""
        return _ratio(*self.words)

    @property
    def length_correlation(self) -> float | None:
        """Pearson's correlation of words and reward within groups; `None` if one never varies."""
        _, _, xx, yy, xy = self.length_reward
        return max(-1.0, min(1.0, xy / (xx * yy) ** 0.5)) if xx > 0 and yy > 0 else None

    @property
    def mean_metrics(self) -> dict[str, float | None]:
        """The means of the trainer's metrics; `None` also where the sum is out of range."""
        return {
            name: _ratio(total, count) if math.isfinite(total) else None
            for name, (total, count) in sorted(self.metrics.items())
        }

    def quantiles(self) -> tuple[float, float] | None:
        """Return the 10th and the 90th percentile of the known rewards, interpolated linearly."""
        if not self.rewards:
            return None
        ordered = sorted(self.rewards)
        return _quantile(ordered, 0.1), _quantile(ordered, 0.9)


class Counts(NamedTuple):
    """Verdicts on a criterion. `judged`: met and not met; what does not apply is in none."""

    met: int = 0
    judged: int = 0
    unknown: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum."""
        return Counts(
            self.met + other.met, self.judged + other.judged, self.unknown + other.unknown
        )


# A run that goes on is counted again and again, and most of its steps stay as they are.
@lru_cache(maxsize=8192)
def count_verdicts(joined: str, criteria: int) -> Sequence[Counts]:
    """Count the verdicts of joined verdict strings, for each of so many criteria."""
    counts = []
    for index in range(criteria):
        column = joined[index::criteria]
        met = column.count(MET)
        counts.append(Counts(met, met + column.count(NOT_MET), column.count(UNKNOWN)))
    return counts


@dataclass(slots=True)
class _Step:
    """What the history has of a step. Verdict strings are joined, by rubric id.

    `end`: when its last group was scored, in seconds since 1970. `second` and `metrics`: those that
    its totals have.
    """

    totals: StepTotals
    second: Sequence[SecondVerdicts]
    metrics: Mapping[str, float | None]
    end: float = 0.0
    groups: list[GroupSummary] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    teacher_verdicts: dict[str, str] = field(default_factory=dict)
    rubrics: dict[str, None] = field(default_factory=dict)
    judges: dict[str, None] = field(default_factory=dict)
    pruned: int = 0


class RunHistory:
    """A run: its steps, its groups, and the verdicts of its rubrics.

    Attributes:
        steps: Totals by step, in the order of steps, of those that have groups.
        groups: The groups that were not pruned.
        verdicts: Joined verdict strings by rubric id and step.
        teacher_verdicts: Those of teacher responses, by rubric id.
        judges: The judges whose verdicts count.
        rubrics: The ids of its rubrics.
        pruned: How many groups were pruned.
        pruned_until: The step after the last one with pruned groups.
        scored_at: When its last group was scored, in seconds since 1970.
    """

    def __init__(
        self,
        groups: Iterable[RunGroup],
        second: Iterable[SecondVerdicts] = (),
        metrics: Mapping[int, Mapping[str, float | None]] | None = None,
        before: "RunHistory | None" = None,
    ) -> None:
        """Make the history of a run.

        Args:
            groups: All its groups; with `before`, all groups of the steps that changed since.
            second: All that second judges said.
            metrics: All metrics of the trainer by step.
            before: An earlier history of the run, whose other steps are taken over.
        """
        by_step: dict[int, list[RunGroup]] = defaultdict(list)
        for group in groups:
            by_step[group.step].append(group)
        second_of: dict[int, list[SecondVerdicts]] = defaultdict(list)
        for each in second:
            if each.step is not None:
                second_of[each.step].append(each)
        self._steps: dict[int, _Step] = dict(before._steps) if before is not None else {}
        for step, found in by_step.items():
            self._steps[step] = _step(step, found, second_of[step], (metrics or {}).get(step, {}))
        for step, stored in self._steps.items():
            beside = second_of.get(step, []), (metrics or {}).get(step, {})
            if (stored.second, stored.metrics) != beside:
                self._steps[step] = _renewed(stored, *beside)
        self._steps = dict(sorted(self._steps.items()))
        self.steps = {step: stored.totals for step, stored in self._steps.items()}
        self.groups: list[GroupSummary] = []
        self.verdicts: dict[str, dict[int, str]] = defaultdict(dict)
        teachers: dict[str, list[str]] = defaultdict(list)
        judges: dict[str, None] = {}
        self.rubrics: dict[str, None] = {}
        self.pruned, self.scored_at = 0, 0.0
        self.pruned_until: int | None = None
        for step, stored in self._steps.items():
            self.groups += stored.groups
            for rubric, joined in stored.verdicts.items():
                self.verdicts[rubric][step] = joined
            for rubric, joined in stored.teacher_verdicts.items():
                teachers[rubric].append(joined)
            judges |= stored.judges
            self.rubrics |= stored.rubrics
            self.scored_at = max(self.scored_at, stored.end)
            if stored.pruned:
                self.pruned += stored.pruned
                self.pruned_until = step + 1
        self.teacher_verdicts = {rubric: "".join(parts) for rubric, parts in teachers.items()}
        self.judges = list(judges)

    @property
    def first_step(self) -> int | None:
        """The first step that has groups."""
        return next(iter(self.steps), None)

    @property
    def last_step(self) -> int | None:
        """The last step that has groups."""
        return next(reversed(self.steps), None)

    @cached_property
    def seconds_per_step(self) -> float | None:
        """The median time between the ends of steps; `None` before the second step."""
        ends = [stored.end for stored in self._steps.values()]
        waits = [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]
        return statistics.median(waits) if waits else None

    @cached_property
    def total(self) -> StepTotals:
        """The totals of all steps."""
        return merge(self.steps.values())

    @cached_property
    def first(self) -> StepTotals:
        """The totals of the first tenth of the steps."""
        return merge(list(self.steps.values())[: self._window])

    @cached_property
    def now(self) -> StepTotals:
        """The totals of the last tenth of the steps."""
        return merge(list(self.steps.values())[-self._window :])

    @property
    def _window(self) -> int:
        return max(1, min(MAX_WINDOW, len(self.steps) // 10))

    def spans(
        self, bins: int, first: int | None = None, last: int | None = None
    ) -> list[StepTotals]:
        """Return the totals of at most so many spans of steps; spans without a group are left out.

        All spans have the same number of steps, but for the last.
        """
        merged: dict[int, StepTotals] = {}
        for number, totals in self._numbered(bins, first, last, self.steps.values()):
            if number in merged:
                merged[number].add(totals)
            else:
                merged[number] = merge([totals])
        return list(merged.values())

    def curve(self, bins: int) -> list[float | None]:
        """Return the mean rewards of at most so many spans; `None` where none is known."""
        if not self.steps:
            return []
        found: dict[int, list[float]] = defaultdict(list)
        for number, totals in self._numbered(bins, None, None, self.steps.values()):
            found[number] += totals.rewards
        return [_ratio(sum(found[number]), len(found[number])) for number in range(max(found) + 1)]

    def span_of(self, bins: int, first: int | None, last: int | None) -> tuple[int, int]:
        """Return the first step of the first span, and how many steps each has."""
        start = self.first_step if first is None else first
        end = self.last_step if last is None else last
        start, end = start or 0, end or 0
        return start, max(1, -(-(end - start + 1) // bins))

    def _numbered(
        self, bins: int, first: int | None, last: int | None, totals: Iterable[StepTotals]
    ) -> Iterator[tuple[int, StepTotals]]:
        start, width = self.span_of(bins, first, last)
        for each in totals:
            if (first is None or each.first >= first) and (last is None or each.first <= last):
                yield (each.first - start) // width, each


def merge(totals: Iterable[StepTotals]) -> StepTotals:
    """Return the sum of the totals of steps, in their order."""
    merged: StepTotals | None = None
    for each in totals:
        if merged is None:
            merged = StepTotals(each.first, each.last)
        merged.add(each)
    return merged or StepTotals(0, 0)


def _step(
    step: int,
    groups: Sequence[RunGroup],
    second: Sequence[SecondVerdicts],
    metrics: Mapping[str, float | None],
) -> _Step:
    totals = StepTotals(step, step)
    stored = _Step(totals, second, metrics)
    gaps = _add_beside(totals, second, metrics)
    for group in groups:
        figures, rubric = group.figures, group.rubric_id
        known = figures.known
        totals.add_group(figures, known)
        stored.end = max(stored.end, figures.at)
        stored.rubrics[rubric] = None
        if group.judge is not None:
            stored.judges[group.judge] = None
        if figures.verdicts:
            stored.verdicts[rubric] = stored.verdicts.get(rubric, "") + figures.verdicts
        if figures.teacher_verdicts:
            said = stored.teacher_verdicts.get(rubric, "")
            stored.teacher_verdicts[rubric] = said + figures.teacher_verdicts
        if group.pruned:
            stored.pruned += 1
        else:
            stored.groups.append(_summary(group, known, gaps.get(group.id)))
    return stored


def _renewed(
    stored: _Step, second: Sequence[SecondVerdicts], metrics: Mapping[str, float | None]
) -> _Step:
    """Return a step with other second verdicts and metrics."""
    totals = replace(stored.totals, second=(0, 0.0, 0.0), metrics={})
    gaps = _add_beside(totals, second, metrics)
    groups = [group._replace(gap=gaps.get(group.id)) for group in stored.groups]
    return replace(stored, totals=totals, second=second, metrics=metrics, groups=groups)


def _add_beside(
    totals: StepTotals, second: Sequence[SecondVerdicts], metrics: Mapping[str, float | None]
) -> dict[str, float]:
    """Add second verdicts and metrics to the totals of a step; return each group's gap by its id.

    A gap is the mean difference between the rewards of the two judges.
    """
    totals.add_metrics(metrics)
    gaps: dict[str, list[float]] = defaultdict(list)
    for each in second:
        totals.add_second(each)
        if each.reward is not None and each.first_reward is not None:
            gaps[each.group].append(abs(each.reward - each.first_reward))
    return {group: statistics.fmean(each) for group, each in gaps.items()}


def _summary(group: RunGroup, known: Sequence[float], gap: float | None) -> GroupSummary:
    figures = group.figures
    teacher = figures.teacher_known
    words = [count for count in figures.words if count is not None]
    return GroupSummary(
        group.id,
        group.step,
        figures.at,
        group.rubric_id,
        _ratio(sum(known), len(known)),
        figures.spread,
        _ratio(sum(teacher), len(teacher)),
        _ratio(sum(words), len(words)),
        len(figures.rewards) - len(known),
        gap,
    )


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def _plus(one: tuple[float, ...], other: tuple[float, ...]) -> Any:
    return tuple(map(add, one, other))


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
