"""How a rubric's criteria perform in the groups that it scored, over all runs of a team."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from markscheme_server.domain.agreement import cross_tables
from markscheme_server.domain.findings import CriterionFigures, PairFigures, find_in_criteria
from markscheme_server.domain.findings.series import MIN_STEPS, phi
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.run_columns import count_by_part, count_verdicts
from markscheme_server.judge.base import FAULTS, EarlierCriterion
from markscheme_server.scoring.run_histories import PAIR_STEPS
from markscheme_server.store.runs import RubricLife, RunStore

SAME, SAME_KNOWN = 0.9, 200
"""Minimum correlation, and minimum rollouts, for two criteria to count as duplicates."""
MAX_CACHED = 4096
"""Rubrics whose result a process caches."""
GROWTH = 1.25
"""A rubric is examined again once it has scored `GROWTH` times as many groups.

A window is a quarter of the groups, so little changes before that.
"""


@dataclass(frozen=True, slots=True)
class CriterionHealth(EarlierCriterion):
    """A criterion's verdicts and findings. `repeats`: ids of the criteria that it duplicates."""

    repeats: Sequence[str]


@dataclass(frozen=True, slots=True)
class RubricHealth:
    """The health of a rubric's criteria over `groups` groups of the given runs."""

    groups: int
    runs: Sequence[str]
    criteria: Sequence[CriterionHealth]


@dataclass(frozen=True, slots=True)
class FaultyRubric:
    """An induced rubric with a criterion that is saturated or inverted, and all its criteria."""

    rubric: Rubric
    criteria: tuple[EarlierCriterion, ...]

    @property
    def reason(self) -> str:
        """The criteria at fault, with their figures, for people."""
        return "; ".join(
            f"{each.criterion.id} {' and '.join(faults)}: {_figures(each)}"
            for each in self.criteria
            if (faults := [kind for kind in each.findings if kind in FAULTS])
        )


class RubricFaults:
    """Finds induced rubrics with a criterion at fault, and caches the result."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._found: OrderedDict[tuple[str, str], tuple[int, FaultyRubric | None]] = OrderedDict()
        # One at a time, since the groups of a batch may all ask about the same rubric.
        self._looking = asyncio.Lock()

    async def find(self, team: str, rubric: Rubric, scored: int) -> FaultyRubric | None:
        """Return the rubric with its figures if it should be replaced, else `None`.

        `scored`: the number of the team's groups that it has scored.
        """
        if scored < MIN_STEPS:
            return None  # too few groups for a window
        key = (team, rubric.id)
        async with self._looking:
            if (found := self._found.get(key)) is not None and scored < GROWTH * found[0]:
                return found[1]
            health = await load_health(self._store, team, rubric)
            faulty = None
            if any(kind in FAULTS for each in health.criteria for kind in each.findings):
                faulty = FaultyRubric(rubric, tuple(health.criteria))
            self._remember(key, scored, faulty)
            return faulty

    def forget(self, team: str, rubric: Rubric) -> None:
        """Drop a rubric's fault until it is examined again, because a replacement was induced."""
        if (found := self._found.get((team, rubric.id))) is not None:
            self._remember((team, rubric.id), found[0], None)

    def _remember(self, key: tuple[str, str], scored: int, faulty: FaultyRubric | None) -> None:
        self._found[key] = scored, faulty
        self._found.move_to_end(key)
        while len(self._found) > MAX_CACHED:
            self._found.popitem(last=False)


async def load_health(store: RunStore, team: str, rubric: Rubric) -> RubricHealth:
    """Return the health of a rubric in the team's groups."""
    life = await store.life_of_rubric(team, rubric.id)
    # In a thread: thousands of groups take a while.
    return await asyncio.to_thread(_health, rubric, life)


def _health(rubric: Rubric, life: RubricLife) -> RubricHealth:
    groups, size = life.groups(), len(rubric.criteria)
    joined = "".join(group.verdicts for group in groups)
    rollouts = count_verdicts(joined, size)
    teachers = count_verdicts("".join(group.teacher_verdicts for group in groups), size)
    # The rubric's life is looked at as a run of one group a step, so that a run's rules apply.
    steps = range(len(groups))
    keys = [criterion_key(criterion) for criterion in rubric.criteria]
    columns = count_by_part([group.verdicts for group in groups], size)
    recent = "".join(group.verdicts for group in groups[-PAIR_STEPS:])
    found = find_in_criteria(
        steps,
        [
            CriterionFigures(
                key,
                criterion.text,
                criterion.points,
                steps,
                *column,
                of_teachers.met,
                of_teachers.judged,
            )
            for key, criterion, column, of_teachers in zip(
                keys, rubric.criteria, columns, teachers, strict=True
            )
        ],
        [
            PairFigures(keys[one], keys[other], *cells)
            for (one, other), cells in cross_tables(recent, size).items()
        ],
    )
    same: dict[int, list[str]] = {}
    for (one, other), cells in cross_tables(joined, size).items():
        if sum(cells) >= SAME_KNOWN and (phi(*cells) or 0.0) >= SAME:
            same.setdefault(one, []).append(rubric.criteria[other].id)
            same.setdefault(other, []).append(rubric.criteria[one].id)
    return RubricHealth(
        len(groups),
        life.runs,
        [
            CriterionHealth(
                criterion,
                rollouts[n],
                teachers[n],
                list(dict.fromkeys(each.kind for each in found if each.criterion == keys[n])),
                same.get(n, []),
            )
            for n, criterion in enumerate(rubric.criteria)
        ],
    )


def _figures(each: EarlierCriterion) -> str:
    shares = [
        f"{whose} {100 * counts.met / counts.judged:.0f} % of {counts.judged}"
        for whose, counts in (("students", each.rollouts), ("teachers", each.teachers))
        if counts.judged
    ]
    return ", ".join(shares)
