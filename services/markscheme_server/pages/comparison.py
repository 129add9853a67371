"""What the page that compares runs shows, made from the answer that the API gives. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from markscheme.schema import (
    ComparedPrompt,
    ComparedSpan,
    CriterionShare,
    PromptGroup,
    RunComparison,
    RunSummary,
    display_step,
)
from markscheme_server.pages import charts
from markscheme_server.pages.labels import category_title, labels
from markscheme_server.pages.words import decimal, percent, share, whole

LETTERS = "ABCDEF"
"""Short names of the compared runs, in their order."""


@dataclass(frozen=True, slots=True)
class Column:
    """A compared run. `difference`: of its reward now from the first run's."""

    letter: str
    run: RunSummary
    swatch: Markup
    as_first: Sequence[str]
    """All runs with this one first."""
    difference: float | None
    unknown: str
    """The stretches of steps without any known reward, in words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a run and its difference from the first run's. `text`: where it has no value."""

    letter: str
    value: float | None
    difference: float | None
    text: str
    note: str


@dataclass(frozen=True, slots=True)
class GroupCell:
    """The group of a prompt in a run, and the difference from the first run's."""

    letter: str
    group: PromptGroup | None
    difference: float | None
    step: str
    same_rubric: bool


def compare_page(found: RunComparison, *, all_criteria: bool, after: str | None) -> dict[str, Any]:
    """Return what the page that compares runs shows. `after`: the prompt that it begins after."""
    runs = found.runs
    columns = [
        Column(
            LETTERS[number],
            run,
            charts.swatch(number),
            [run.id, *(other.id for other in runs if other is not run)],
            _minus(run.reward_now, runs[0].reward_now) if number else None,
            _unknown(found.spans, number),
        )
        for number, run in enumerate(runs)
    ]
    label = "Mean reward by step: " + "; ".join(
        f"{c.letter} {decimal(c.run.reward_first)} at first, {decimal(c.run.reward_now)} now"
        for c in columns
    )
    steps = (found.spans[0].first_step, found.spans[-1].last_step) if found.spans else (1, 1)
    curves = [_curve(found.spans, number) for number in range(len(runs))]
    drawn = any(sum(y is not None for _, y in curve.points) > 1 for curve in curves)
    names = labels([(c.text, f"{c.criterion_id} of {c.rubric_id}") for c in found.criteria])
    return {
        "found": found,
        "columns": columns,
        "ids": [run.id for run in runs],
        "all_criteria": all_criteria,
        "after": after,
        "charts": [
            charts.comparison_chart(curves, steps, size=size, label=label)
            for size in (charts.WIDE, charts.NARROW)
        ]
        if drawn
        else [],
        "reward_data": _reward_data(found.spans, len(runs)),
        "differences": list(zip(columns[1:], found.differences, strict=True)),
        "categories": [
            (category_title(each.category), _cells(each.now, each.criteria))
            for each in found.categories
        ],
        "criteria": [
            (each, name, _cells(each.now)) for each, name in zip(found.criteria, names, strict=True)
        ],
        "prompts": [(each, _group_cells(each, runs)) for each in found.prompts],
        "any_other_rubric": any(
            cell.group is not None and not cell.same_rubric
            for each in found.prompts
            for cell in _group_cells(each, runs)
        ),
    }


def _minus(other: float | None, first: float | None) -> float | None:
    return other - first if other is not None and first is not None else None


def _curve(spans: Sequence[ComparedSpan], run: int) -> charts.Curve:
    # A span without a step of the run is no gap: it may have been scored every tenth step only.
    scored = [(span, span.runs[run]) for span in spans if span.runs[run].rollouts]
    return charts.Curve(
        LETTERS[run],
        [((span.first_step + span.last_step) / 2, each.reward) for span, each in scored],
        [each.rollouts - each.unscored for _, each in scored],
    )


def _unknown(spans: Sequence[ComparedSpan], run: int) -> str:
    scored = [(span, span.runs[run]) for span in spans if span.runs[run].rollouts]
    stretches = []
    for known, stretch in groupby(scored, key=lambda pair: pair[1].reward is not None):
        if not known:
            listed = [span for span, _ in stretch]
            first, last = listed[0].first_step, listed[-1].last_step
            stretches.append(whole(first) if first == last else f"{whole(first)}–{whole(last)}")
    return ", ".join(stretches)


def _reward_data(spans: Sequence[ComparedSpan], runs: int) -> dict[str, Any]:
    """Return the figures behind the chart, which the script shows under the pointer."""
    return {
        "steps": [[span.first_step, span.last_step] for span in spans],
        "offset": 0,
        "unscored": [sum(each.unscored for each in span.runs) for span in spans],
        "series": {
            LETTERS[run]: [
                "no step"
                if not span.runs[run].rollouts
                else None
                if (reward := span.runs[run].reward) is None
                # Ten digits are precise enough, and keep the page small.
                else round(reward, 10)
                for span in spans
            ]
            for run in range(runs)
        },
    }


def _cells(
    now: Sequence[CriterionShare | None], criteria: Sequence[int] | None = None
) -> list[Cell]:
    """Return the shares of a criterion, or of a category of so many criteria, in each run."""
    values = [share(each.met, each.judged) if each is not None else None for each in now]
    cells = []
    for number, (each, value) in enumerate(zip(now, values, strict=True)):
        note = ""
        if each is not None:
            note = f"{whole(each.met)} of {whole(each.judged)} verdicts"
            note += f", {whole(each.unknown)} not known" if each.unknown else ""
            note += f"; {whole(criteria[number])} criteria" if criteria is not None else ""
        text = "not asked" if each is None else percent(value) if each.judged else "not known"
        difference = _minus(value, values[0]) if number else None
        cells.append(Cell(LETTERS[number], value, difference, text, note))
    return cells


def _group_cells(prompt: ComparedPrompt, runs: Sequence[RunSummary]) -> list[GroupCell]:
    first = prompt.groups[0]
    return [
        GroupCell(
            LETTERS[number],
            group,
            _minus(group.mean, first.mean) if number and group and first else None,
            whole(display_step(group.step, run.first_step or 0)) if group else "",
            group is None
            or first is None
            or (group.rubric_id, group.judge) == (first.rubric_id, first.judge),
        )
        for number, (group, run) in enumerate(zip(prompt.groups, runs, strict=True))
    ]
