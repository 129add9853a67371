"""The figures of a run's steps as columns.

A column has one entry for each step: a few long arrays are read, joined and added up in a fraction
of the time that as many objects take. A figure that is not known is in no sum.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from operator import add
from typing import NamedTuple

from markscheme_server.domain.group_figures import GroupFigures
from markscheme_server.domain.step_totals import StepTotals
from markscheme_server.domain.verdict import MET, NOT_MET, UNKNOWN

COUNTS = (
    "groups",
    "rollouts",
    "known",
    "truncated",
    "comparable",
    "flat",
    "pruned",
    "words",
    "words_known",
    "teacher_known",
    "beside_teacher",
    "length_rollouts",
    "length_groups",
)
"""Columns of whole numbers; `Columns` has what they are."""
SUMS = (
    "end",
    "reward",
    "reward_squares",
    "teacher",
    "beside_reward",
    "beside_other",
    "xx",
    "yy",
    "xy",
)
"""Columns of other numbers."""


class RunGroup(NamedTuple):
    """A stored group of a run. `pruned`: its texts are gone."""

    id: str
    step: int
    rubric_id: str
    judge: str | None
    pruned: bool
    figures: GroupFigures


_KINDS = [bytes(chr(byte) in kind for byte in range(256)) for kind in (MET, MET + NOT_MET)]
"""For what is met and what is known: 1 for the characters that count, 0 for others."""


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


def count_by_part(parts: Sequence[str], criteria: int) -> list[tuple[list[int], list[int]]]:
    """Count the verdicts of each of many joined verdict strings.

    Returns for each of so many criteria how many of each part are met, and how many are known.
    """
    columns = [([0] * len(parts), [0] * len(parts)) for _ in range(criteria)]
    places: dict[int, list[int]] = {}
    for place, part in enumerate(parts):
        if part:
            places.setdefault(len(part), []).append(place)
    for length, alike in places.items():
        # A character of all parts at once is one number with a byte for each: a sum of such numbers
        # counts in all parts, as long as no byte overflows.
        joined = "".join([parts[place] for place in alike]).encode()
        for number, table in enumerate(_KINDS):
            plain = joined.translate(table)
            for criterion, column in enumerate(columns):
                counts = [0] * len(alike)
                for start in range(criterion, length, 255 * criteria):
                    characters = range(start, min(length, start + 255 * criteria), criteria)
                    lanes = sum(int.from_bytes(plain[each::length]) for each in characters)
                    counts = list(map(add, counts, lanes.to_bytes(len(alike))))
                if len(alike) == len(parts):
                    column[number][:] = counts
                else:
                    for place, count in zip(alike, counts, strict=True):
                        column[number][place] = count
    return columns


class CriterionColumns(NamedTuple):
    """The fields of `Counts` of a criterion, by step."""

    steps: Sequence[int] = ()
    met: Sequence[int] = ()
    judged: Sequence[int] = ()
    unknown: Sequence[int] = ()


def added(parts: Sequence[CriterionColumns]) -> CriterionColumns:
    """Return the sums of criteria by step."""
    if len(parts) < 2:
        return parts[0] if parts else CriterionColumns()
    first = parts[0]
    if all(part.steps == first.steps for part in parts[1:]):
        fields = zip(*(part[1:] for part in parts), strict=True)
        return CriterionColumns(
            first.steps, *(list(map(sum, zip(*each, strict=True))) for each in fields)
        )
    sums: dict[int, list[int]] = {}
    for part in parts:
        for step, *cells in zip(*part, strict=True):
            sums[step] = list(map(add, sums.get(step, (0, 0, 0)), cells))
    return CriterionColumns(
        *zip(*((step, *cells) for step, cells in sorted(sums.items())), strict=True)
    )


@dataclass(slots=True)
class VerdictColumns:
    """The verdicts on a rubric's criteria, by step.

    `steps`: those in which it was asked; `cells`: the three fields of `Counts` for each of the
    `criteria`, step after step.
    """

    criteria: int
    steps: "array[int]" = field(default_factory=lambda: array("q"))
    cells: "array[int]" = field(default_factory=lambda: array("q"))

    def of(self, criterion: int) -> CriterionColumns:
        """Return the columns of the criterion with this index."""
        places = range(3 * criterion, 3 * criterion + 3)
        return CriterionColumns(
            self.steps, *(self.cells[place :: 3 * self.criteria] for place in places)
        )


class Columns:
    """The figures of some steps, in their order.

    Attributes:
        steps: The steps' numbers.
        counts: By name: groups; their rollouts, and those of known reward; truncated rollouts;
            groups with two or more different texts of known reward, and those of them in which
            all rewards are equal; pruned groups; the sum of the known words, and how many are
            known; teacher rewards that are known; rollouts of known reward in groups with a known
            teacher reward; rollouts and groups of `group_figures.length_reward`.
        sums: By name: when the last group was scored, in seconds since 1970; the sum of the known
            rewards and of their squares; that of the teachers' rewards; those of the rewards of
            rollouts beside a teacher and of their groups' mean teacher rewards; `length_reward`.
        rewards: The known rewards, step after step.
        reasons: Rollouts of unknown reward by step and reason.
        verdicts: By rubric id.
        teachers: Verdicts on teacher responses by rubric id, for each criterion.
        rubrics: The ids of all rubrics.
        judges: The judges whose verdicts count.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.counts = {name: array("q") for name in COUNTS}
        self.sums = {name: array("d") for name in SUMS}
        self.rewards = array("d")
        self.reasons: dict[int, dict[str, int]] = {}
        self.verdicts: dict[str, VerdictColumns] = {}
        self.teachers: dict[str, list[Counts]] = {}
        self.rubrics: dict[str, None] = {}
        self.judges: dict[str, None] = {}

    @classmethod
    def joined(cls, parts: Iterable["Columns"]) -> "Columns":
        """Return the columns of the steps of all parts, which are in order."""
        whole = cls()
        for part in parts:
            whole.steps += part.steps
            for name, column in whole.counts.items():
                column += part.counts[name]
            for name, sums in whole.sums.items():
                sums += part.sums[name]
            whole.rewards += part.rewards
            whole.reasons |= part.reasons
            for rubric, verdicts in part.verdicts.items():
                into = whole.verdicts.setdefault(rubric, VerdictColumns(verdicts.criteria))
                into.steps += verdicts.steps
                into.cells += verdicts.cells
            for rubric, counts in part.teachers.items():
                whole._add_teachers(rubric, counts)
            whole.rubrics |= part.rubrics
            whole.judges |= part.judges
        return whole

    def add_step(self, step: int, groups: Sequence[RunGroup]) -> dict[str, str]:
        """Add a step after the others; return its joined verdict strings by rubric id."""
        c, s = dict.fromkeys(COUNTS, 0), dict.fromkeys(SUMS, 0.0)
        verdicts: dict[str, str] = {}
        teachers: dict[str, str] = {}
        criteria: dict[str, int] = {}
        reasons: dict[str, int] = {}
        for group in groups:
            figures, rubric = group.figures, group.rubric_id
            known = figures.known
            self.rewards.extend(known)
            c["groups"] += 1
            c["rollouts"] += len(figures.rewards)
            c["known"] += len(known)
            c["truncated"] += figures.truncated
            c["pruned"] += group.pruned
            s["end"] = max(s["end"], figures.at)
            s["reward"] += sum(known)
            s["reward_squares"] += sum(reward * reward for reward in known)
            for reason in figures.reasons:
                reasons[reason] = reasons.get(reason, 0) + 1
            if figures.spread is not None:
                c["comparable"] += 1
                c["flat"] += figures.spread == 0
            words = [count for count in figures.words if count is not None]
            c["words"] += sum(words)
            c["words_known"] += len(words)
            if teacher := figures.teacher_known:
                c["teacher_known"] += len(teacher)
                s["teacher"] += sum(teacher)
                c["beside_teacher"] += len(known)
                s["beside_reward"] += sum(known)
                s["beside_other"] += len(known) * (sum(teacher) / len(teacher))
            if figures.length_reward is not None:
                rollouts, xx, yy, xy = figures.length_reward
                c["length_rollouts"] += int(rollouts)
                c["length_groups"] += 1
                s["xx"] += xx
                s["yy"] += yy
                s["xy"] += xy
            self.rubrics[rubric] = None
            if group.judge is not None:
                self.judges[group.judge] = None
            if figures.verdicts:
                verdicts[rubric] = verdicts.get(rubric, "") + figures.verdicts
                criteria[rubric] = len(figures.verdicts) // len(figures.rewards)
            if figures.teacher_verdicts:
                teachers[rubric] = teachers.get(rubric, "") + figures.teacher_verdicts
                criteria[rubric] = len(figures.teacher_verdicts) // len(figures.teacher_rewards)
        self.steps.append(step)
        for name, count in c.items():
            self.counts[name].append(count)
        for name, total in s.items():
            self.sums[name].append(total)
        if reasons:
            self.reasons[step] = reasons
        for rubric, joined in verdicts.items():
            into = self.verdicts.setdefault(rubric, VerdictColumns(criteria[rubric]))
            into.steps.append(step)
            into.cells.extend(chain.from_iterable(count_verdicts(joined, criteria[rubric])))
        for rubric, joined in teachers.items():
            self._add_teachers(rubric, count_verdicts(joined, criteria[rubric]))
        return verdicts

    def totals(
        self,
        start: int,
        stop: int,
        second: Sequence[tuple[int, float, float]] = (),
        metrics: Sequence[Mapping[str, float | None]] = (),
    ) -> StepTotals:
        """Return the totals of the steps from one index to another.

        `second`: the sums of `StepTotals.second` of some of these steps. `metrics`: of the steps
        that have any.
        """
        if start >= stop:
            return StepTotals(0, 0)
        c = {name: sum(column[start:stop]) for name, column in self.counts.items()}
        s = {name: sum(column[start:stop]) for name, column in self.sums.items()}
        low, high = self._reward_ends[start], self._reward_ends[stop]
        reasons: Counter[str] = Counter()
        if c["known"] < c["rollouts"]:
            for step in self.steps[start:stop]:
                reasons.update(self.reasons.get(step, {}))
        return StepTotals(
            self.steps[start],
            self.steps[stop - 1],
            c["groups"],
            c["rollouts"],
            c["truncated"],
            c["comparable"],
            c["flat"],
            self.rewards[low:high],
            s["reward"],
            reasons,
            (c["words"], c["words_known"]),
            (s["teacher"], c["teacher_known"]),
            (
                sum(each[0] for each in second),
                sum(each[1] for each in second),
                sum(each[2] for each in second),
            ),
            (s["xx"], s["yy"], s["xy"]),
            metrics,
        )

    @cached_property
    def _reward_ends(self) -> list[int]:
        """The index of the first reward of each step, and that after the last one."""
        return list(accumulate(self.counts["known"], initial=0))

    def _add_teachers(self, rubric: str, counts: Sequence[Counts]) -> None:
        known = self.teachers.get(rubric)
        self.teachers[rubric] = (
            list(counts)
            if known is None
            else [one.plus(other) for one, other in zip(known, counts, strict=True)]
        )
