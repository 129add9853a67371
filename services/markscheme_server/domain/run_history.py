"""The figures of a run by step, and of its criteria, from the figures of its groups.

A figure that is not known is in no sum: it never counts as 0.
"""

import base64
import json
import math
import statistics
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from operator import add
from typing import Any, NamedTuple

from markscheme_server.domain.group_figures import GroupFigures
from markscheme_server.domain.verdict import MET, NOT_MET, UNKNOWN

MAX_WINDOW = 100
"""Steps of the first and the last window of a run, at most; they are a tenth of its steps."""
BLOCK_STEPS = 25
"""Steps of a run whose figures are stored and read together."""
BLOCK_VERSION = 1
"""The format of stored blocks: change it with `BLOCK_STEPS`, `_pack` and what they hold."""


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


class SecondReward(NamedTuple):
    """The rewards of a rollout of a run by two judges, the training judge's first."""

    group: str
    step: int
    first_reward: float
    reward: float


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

    def add_second(self, rewards: Sequence[SecondReward]) -> None:
        """Add the rewards of rollouts by two judges."""
        count, first, second = self.second
        self.second = (
            count + len(rewards),
            first + sum(each.first_reward for each in rewards),
            second + sum(each.reward for each in rewards),
        )

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


Cells = tuple[int, int, int]
"""The fields of `Counts`: a plain tuple takes a tenth of the time to make."""


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


def count_verdicts(joined: str, criteria: int) -> list[Counts]:
    """Count the verdicts of joined verdict strings, for each of so many criteria."""
    counts = []
    for index in range(criteria):
        column = joined[index::criteria]
        met = column.count(MET)
        counts.append(Counts(met, met + column.count(NOT_MET), column.count(UNKNOWN)))
    return counts


class BlockMark(NamedTuple):
    """What tells whether the groups of a block are still the same.

    `groups`: how many there are without the `pruned` ones; `scored_at`: when the last of them was
    scored, in seconds since 1970.
    """

    groups: int = 0
    pruned: int = 0
    scored_at: float | None = None


class Block(NamedTuple):
    """The figures of up to `BLOCK_STEPS` steps as they are stored.

    `first`: the first of the steps, whether or not it is in the run. `figures`, `details`: of
    `_pack`.
    """

    first: int
    mark: BlockMark
    figures: bytes
    details: bytes


def block_of(step: int) -> int:
    """Return the first step of the block that a step is in."""
    return step // BLOCK_STEPS * BLOCK_STEPS


class _Details(NamedTuple):
    """What few answers need of a step: verdict strings by rubric id, and its groups."""

    verdicts: Mapping[str, str]
    groups: Sequence[GroupSummary]


@dataclass(slots=True)
class _Step:
    """What the history has of a step. Mappings are by rubric id; teachers' verdicts are joined.

    `end`: when its last group was scored, in seconds since 1970. `details`: returns the details of
    a step. `second` and `metrics`: those that its totals have.
    """

    totals: StepTotals
    details: Callable[[int], _Details]
    end: float
    pruned: int
    counts: Mapping[str, Sequence[Cells]]
    teacher_verdicts: Mapping[str, str]
    rubrics: Sequence[str]
    judges: Sequence[str]
    second: Sequence[SecondReward] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)


class RunHistory:
    """A run: its steps, its groups, and the verdicts of its rubrics.

    Attributes:
        steps: Totals by step, in the order of steps, of those that have groups.
        counts: Verdicts on each criterion, by rubric id and step.
        teacher_verdicts: Joined verdict strings of teacher responses, by rubric id.
        judges: The judges whose verdicts count.
        rubrics: The ids of its rubrics.
        pruned: How many groups were pruned.
        pruned_until: The step after the last one with pruned groups.
    """

    def __init__(
        self,
        groups: Iterable[RunGroup],
        second: Iterable[SecondReward] = (),
        metrics: Mapping[int, Mapping[str, float | None]] | None = None,
        before: "RunHistory | None" = None,
        blocks: Iterable[Block] = (),
    ) -> None:
        """Make the history of a run.

        Args:
            groups: All groups of the steps that are neither in `before` nor in `blocks`, or have
                changed since.
            second: All rollouts with rewards by two judges.
            metrics: All metrics of the trainer by step.
            before: An earlier history of the run, whose other steps are taken over.
            blocks: Blocks of steps as they are stored.
        """
        by_step: dict[int, list[RunGroup]] = defaultdict(list)
        for group in groups:
            by_step[group.step].append(group)
        second_of: dict[int, list[SecondReward]] = defaultdict(list)
        for each in second:
            second_of[each.step].append(each)
        found = {step.totals.first: step for block in blocks for step in _unpack(block)}
        found |= {step: _step(step, of_step) for step, of_step in by_step.items()}
        earlier: dict[int, _Step] = before._steps if before is not None else {}
        self._steps: dict[int, _Step] = dict(sorted((earlier | found).items()))
        for step, stored in self._steps.items():
            beside = second_of.get(step, []), (metrics or {}).get(step, {})
            if (stored.second, stored.metrics) == beside:
                continue
            if step not in found:  # the earlier history stays as it was
                totals = replace(stored.totals, second=(0, 0.0, 0.0), metrics={})
                stored = self._steps[step] = replace(stored, totals=totals)
            stored.second, stored.metrics = beside
            stored.totals.add_second(stored.second)
            stored.totals.add_metrics(stored.metrics)
        self.steps = {step: stored.totals for step, stored in self._steps.items()}
        self.counts: dict[str, dict[int, Sequence[Cells]]] = defaultdict(dict)
        teachers: dict[str, list[str]] = defaultdict(list)
        judges: dict[str, None] = {}
        rubrics: dict[str, None] = {}
        self.pruned = 0
        self.pruned_until: int | None = None
        for step, stored in self._steps.items():
            for rubric, counts in stored.counts.items():
                self.counts[rubric][step] = counts
            for rubric, joined in stored.teacher_verdicts.items():
                teachers[rubric].append(joined)
            judges |= dict.fromkeys(stored.judges)
            rubrics |= dict.fromkeys(stored.rubrics)
            if stored.pruned:
                self.pruned += stored.pruned
                self.pruned_until = step + 1
        self.teacher_verdicts = {rubric: "".join(parts) for rubric, parts in teachers.items()}
        self.judges, self.rubrics = list(judges), list(rubrics)

    @cached_property
    def groups(self) -> list[GroupSummary]:
        """The groups that were not pruned, in the order of steps."""
        gaps: dict[str, list[float]] = defaultdict(list)
        for stored in self._steps.values():
            for each in stored.second:
                gaps[each.group].append(abs(each.reward - each.first_reward))
        return [
            group._replace(gap=statistics.fmean(gaps[group.id])) if group.id in gaps else group
            for step, stored in self._steps.items()
            for group in stored.details(step).groups
        ]

    def verdicts(self, since: int | None = None) -> dict[str, str]:
        """Return the joined verdict strings of the steps from `since` on, by rubric id."""
        parts: dict[str, list[str]] = defaultdict(list)
        for step, stored in self._steps.items():
            if since is None or step >= since:
                for rubric, joined in stored.details(step).verdicts.items():
                    parts[rubric].append(joined)
        return {rubric: "".join(each) for rubric, each in parts.items()}

    def blocks(self, marks: Mapping[int, BlockMark]) -> list[Block]:
        """Return the blocks that begin with these steps and have these marks, to be stored."""
        steps: dict[int, list[_Step]] = {first: [] for first in marks}
        for step, stored in self._steps.items():
            if (first := block_of(step)) in steps:
                steps[first].append(stored)
        return [_pack(first, mark, steps[first]) for first, mark in marks.items()]

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


def _step(step: int, groups: Sequence[RunGroup]) -> _Step:
    totals = StepTotals(step, step)
    end, pruned = 0.0, 0
    rubrics: dict[str, None] = {}
    judges: dict[str, None] = {}
    verdicts: dict[str, str] = {}
    teachers: dict[str, str] = {}
    criteria: dict[str, int] = {}
    summaries = []
    for group in groups:
        figures, rubric = group.figures, group.rubric_id
        known = figures.known
        totals.add_group(figures, known)
        end = max(end, figures.at)
        rubrics[rubric] = None
        if group.judge is not None:
            judges[group.judge] = None
        if figures.verdicts:
            verdicts[rubric] = verdicts.get(rubric, "") + figures.verdicts
            criteria[rubric] = len(figures.verdicts) // len(figures.rewards)
        if figures.teacher_verdicts:
            teachers[rubric] = teachers.get(rubric, "") + figures.teacher_verdicts
        if group.pruned:
            pruned += 1
        else:
            summaries.append(_summary(group, known))
    return _Step(
        totals,
        {step: _Details(verdicts, summaries)}.__getitem__,
        end,
        pruned,
        {rubric: count_verdicts(joined, criteria[rubric]) for rubric, joined in verdicts.items()},
        teachers,
        list(rubrics),
        list(judges),
    )


_PACKED = (
    "groups",
    "rollouts",
    "truncated",
    "comparable",
    "flat",
    "words",
    "teacher",
    "beside_teacher",
    "length_reward",
)
"""The totals that a block has as they are, without second judges and metrics."""


def _pack(first: int, mark: BlockMark, steps: Sequence[_Step]) -> Block:
    """Return a block of steps. JSON, but for the rewards: they are many, and must stay exact."""
    figures, details = [], []
    for each in steps:
        totals, number = each.totals, each.totals.first
        figures.append(
            [
                number,
                [getattr(totals, name) for name in _PACKED],
                totals.reasons,
                len(totals.rewards),
                each.end,
                each.pruned,
                {rubric: list(chain(*counts)) for rubric, counts in each.counts.items()},
                each.teacher_verdicts,
                each.rubrics,
                each.judges,
            ]
        )
        verdicts, groups = each.details(number)
        details.append([number, verdicts, groups])
    rewards = array("d", chain.from_iterable(each.totals.rewards for each in steps))
    return Block(
        first,
        mark,
        _compress([figures, base64.b64encode(rewards.tobytes()).decode()]),
        _compress(details),
    )


def _unpack(block: Block) -> Iterator[_Step]:
    figures, encoded = _decompress(block.figures)
    rewards = array("d", base64.b64decode(encoded)).tolist()
    details = _PackedDetails(block.details).of
    ends = accumulate((each[3] for each in figures), initial=0)
    for each, (start, stop) in zip(figures, pairwise(ends), strict=True):
        step, packed, reasons, _, end, pruned, counts, teachers, rubrics, judges = each
        groups, rollouts, truncated, comparable, flat, words, teacher, beside, length = packed
        totals = StepTotals(
            step,
            step,
            groups,
            rollouts,
            Counter(reasons) if reasons else Counter(),
            rewards[start:stop],
            truncated,
            comparable,
            flat,
            tuple(words),
            tuple(teacher),
            tuple(beside),
            length_reward=tuple(length),
        )
        yield _Step(
            totals,
            details,
            end,
            pruned,
            {
                rubric: list(zip(row[::3], row[1::3], row[2::3], strict=True))
                for rubric, row in counts.items()
            },
            teachers,
            rubrics,
            judges,
        )


class _PackedDetails:
    """The details of the steps of a block, which are read when they are asked for."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def of(self, step: int) -> _Details:
        """Return the details of a step."""
        return self._by_step[step]

    @cached_property
    def _by_step(self) -> dict[int, _Details]:
        return {
            step: _Details(verdicts, [GroupSummary(*each) for each in groups])
            for step, verdicts, groups in _decompress(self._packed)
        }


def _compress(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _decompress(packed: bytes) -> Any:
    return json.loads(zlib.decompress(packed))


def _summary(group: RunGroup, known: Sequence[float]) -> GroupSummary:
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
        None,
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
