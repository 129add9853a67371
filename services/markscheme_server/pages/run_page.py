"""What the page of a run shows, made from the answers that the API gives. Pure."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from markscheme.schema import (
    CategoryHistory,
    CriterionHistory,
    CriterionList,
    FindingList,
    Replay,
    RunDetail,
    RunGroupList,
    RunSummary,
    StepList,
    StepSpan,
    display_step,
)
from markscheme.vocabulary import GroupSort
from markscheme_server.pages import charts
from markscheme_server.pages.labels import Label, category_title, labels
from markscheme_server.pages.replay_page import replay_changes
from markscheme_server.pages.words import CATEGORIES, decimal, percent, share, signed, whole

SHORT_RUN = 2
"""From this many spans on, rewards are shown as a curve; below, as a table."""


@dataclass(frozen=True, slots=True)
class Row:
    """A criterion of the heat map."""

    history: CriterionHistory
    label: Label
    heat: Markup
    first: float | None
    now: float | None
    teacher: float | None
    change: str
    """The change from first to now in points of percent, if it is large and nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Category:
    """A category of the heat map with its criteria, and all of them added up.

    `history` is null where it would repeat the only criterion.
    """

    title: str
    rows: Sequence[Row]
    history: CategoryHistory | None
    heat: Markup
    first: float | None
    now: float | None
    teacher: float | None

    @property
    def key(self) -> str:
        """The name of its figures among those of the heat map."""
        return f"category {self.title}"


@dataclass(frozen=True, slots=True)
class Window:
    """Which steps and groups of a run a page shows: the query of its address."""

    last: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    criterion: str | None = None
    sort: GroupSort = "newest"
    after: str | None = None
    all_criteria: bool = False

    def query(self, **changes: Any) -> dict[str, Any]:
        """Return the query with changes; defaults are left out."""
        stated: dict[str, Any] = {
            "last": self.last,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "criterion": self.criterion,
            "sort": None if self.sort == "newest" else self.sort,
            "criteria": "all" if self.all_criteria else None,
        } | changes
        return {name: value for name, value in stated.items() if value is not None}


def run_page(
    run: RunDetail,
    steps: StepList,
    criteria: CriterionList,
    findings: FindingList,
    groups: RunGroupList,
    window: Window,
    replays: Sequence[Replay] = (),
) -> dict[str, Any]:
    """Return what the page of a run shows."""
    spans = steps.data
    first_step = steps.first_step or 0
    known = [span for span in spans if span.reward is not None]
    categories = _categories(criteria)
    chart = len(known) >= SHORT_RUN or (len(spans) >= SHORT_RUN and bool(known))
    label = (
        f"Mean reward by step: {decimal(run.reward_first)} at first, {decimal(run.reward_now)} now"
    )
    if run.teacher is not None:
        label += f"; teacher {decimal(run.teacher)}"
    return {
        "run": run,
        "replays": [(each, replay_changes(each)) for each in replays],
        "window": window,
        "findings": findings.data,
        "alarms": {finding.kind for finding in findings.data if finding.level == "alarm"},
        "spans": spans,
        "first_step": first_step,
        "shown_step": lambda step: whole(display_step(step, first_step)),
        "known": known,
        "reward_charts": [
            charts.reward_chart(spans, first_step, size=size, label=label)
            for size in (charts.WIDE, charts.NARROW)
        ]
        if chart
        else [],
        "has_teacher": any(span.teacher is not None for span in spans),
        "has_second": any(span.second_judge is not None for span in spans),
        "has_hole": bool(charts.unknown_stretches(spans)),
        "smoothed": _smoothed(spans),
        "small": _small_charts(spans, first_step) if chart else [],
        "categories": categories,
        "criteria": criteria,
        "heat_axis": charts.heat_axis(
            criteria.first_step or 0, criteria.last_step or 0, criteria.first_step or 0
        ),
        "legend": charts.colour_legend(),
        "groups": groups,
        "reward_data": _reward_data(spans, first_step),
        "heat_data": _heat_data(criteria, categories),
        "unknown_share": run.unscored / run.rollouts if run.rollouts else None,
        "of_teacher": run.reward_now / run.teacher
        if run.reward_now is not None and run.teacher
        else None,
        "with_spread": 1 - run.flat_groups / run.comparable_groups
        if run.comparable_groups
        else None,
    }


def split_sentence(sentence: str) -> tuple[str, str]:
    """Split the text of a finding into its first sentence, the heading, and the rest."""
    heading, dot, rest = sentence.partition(". ")
    return heading + dot.strip(), rest


def steps_of(run: RunSummary) -> str:
    """Write how far a run is: `1,000 of 2,000`."""
    if run.last_step is None:
        return "–"
    done = whole(display_step(run.last_step, run.first_step or 0))
    return done if run.steps is None else f"{done} of {whole(run.steps)}"


def steps_csv(steps: StepList) -> str:
    """Return spans of steps as a table of comma-separated values; what is not known is empty.

    `metrics.` before a metric's name tells it from the service's figure of that name, such as
    `reward`, and keeps a spreadsheet from running a name as a formula.
    """
    out = io.StringIO()
    names = [name for name in StepSpan.model_fields if name not in ("reasons", "metrics")]
    reasons = sorted({name for span in steps.data for name in span.reasons})
    metrics = sorted({name for span in steps.data for name in span.metrics})
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *names,
            *(f"unscored_{name}" for name in reasons),
            *(f"metrics.{name}" for name in metrics),
        ]
    )
    for span in steps.data:
        row = [getattr(span, name) for name in names]
        row += [span.reasons.get(name, 0) for name in reasons]
        row += [span.metrics.get(name) for name in metrics]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def _categories(criteria: CriterionList) -> list[Category]:
    first, last = criteria.first_step or 0, criteria.last_step or 0
    found: dict[str, list[Row]] = {}
    named = labels([(c.text, f"{c.criterion_id} of {c.rubrics[0]}") for c in criteria.data])
    for history, label in zip(criteria.data, named, strict=True):
        row = _row(history, label, first, last)
        found.setdefault(category_title(history.category), []).append(row)
    totals = {category_title(each.category): each for each in criteria.categories}
    order = list(CATEGORIES.values())
    return [
        _category(title, found.get(title, []), totals.get(title), first, last)
        for title in sorted(found.keys() | totals.keys(), key=order.index)
    ]


def _category(
    title: str, rows: Sequence[Row], total: CategoryHistory | None, first: int, last: int
) -> Category:
    if total is None or total.criteria < 2:
        return Category(title, rows, None, Markup(), None, None, None)
    at_first, now = (share(each.met, each.judged) for each in (total.first, total.now))
    label = f"{title}: {percent(at_first)} at first, {percent(now)} now"
    return Category(
        title,
        rows,
        total,
        charts.heat_row(total.spans, first, last, label),
        at_first,
        now,
        share(total.teacher.met, total.teacher.judged),
    )


def _row(history: CriterionHistory, name: Label, first: int, last: int) -> Row:
    at_first = share(history.first.met, history.first.judged)
    now = share(history.now.met, history.now.judged)
    change = ""
    if at_first is not None and now is not None and not history.findings:
        points = round(100 * (now - at_first))
        change = signed(points, 0) if abs(points) >= 10 else ""
    label = f"{history.criterion_id}: {percent(at_first)} at first, {percent(now)} now"
    return Row(
        history,
        name,
        charts.heat_row(history.spans, first, last, label),
        at_first,
        now,
        share(history.teacher.met, history.teacher.judged),
        change,
    )


def _small_charts(spans: Sequence[StepSpan], first_step: int) -> list[tuple[str, str, Markup]]:
    """Return title, newest value and chart of each figure beside the reward."""
    unknown = [s.unscored / s.rollouts if s.rollouts else None for s in spans]
    spread = [
        1 - s.flat_groups / s.comparable_groups if s.comparable_groups else None for s in spans
    ]
    correlation = [s.length_reward for s in spans]
    words = [s.words for s in spans]
    wide = 0.5 if all(abs(r) <= 0.5 for r in correlation if r is not None) else 1.0
    figures: list[tuple[str, str, list[float | None], dict[str, Any]]] = [
        ("Words per rollout", decimal(_newest(words), 0), words, {}),
        (
            "Length and reward, r",
            signed(_newest(correlation)),
            correlation,
            {"bounds": (-wide, wide)},
        ),
        ("Groups with spread", percent(_newest(spread)), spread, {"bounds": (0.0, 1.0)}),
        (
            "Rewards not known",
            percent(_newest(unknown)),
            unknown,
            {"bounds": (0.0, 1.0), "bars": True},
        ),
    ]
    return [
        (
            title,
            newest,
            charts.small_chart(
                spans, values, first_step, label=f"{title}: {newest} now", **options
            ),
        )
        for title, newest, values, options in figures
    ]


def _newest(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _smoothed(spans: Sequence[StepSpan]) -> int:
    """Return the number of steps that the smoothed line averages."""
    if not spans:
        return 0
    steps = spans[-1].last_step - spans[0].first_step + 1
    return max(1, round(charts.smoothed_spans(len(spans)) * steps / len(spans)))


def _reward_data(spans: Sequence[StepSpan], first_step: int) -> dict[str, Any]:
    """Return the figures behind the chart, which the script shows under the pointer."""
    series = {
        "reward": [s.reward for s in spans],
        "low": [s.low for s in spans],
        "high": [s.high for s in spans],
        "teacher": [s.teacher for s in spans],
        "second judge": [s.second_judge for s in spans],
    }
    return {
        "steps": [[s.first_step, s.last_step] for s in spans],
        "offset": display_step(first_step, first_step) - first_step,
        "unscored": [s.unscored for s in spans],
        "series": {
            # Ten digits are precise enough, and halve the size of the page.
            name: [None if value is None else round(value, 10) for value in values]
            for name, values in series.items()
            if name == "reward" or any(value is not None for value in values)
        },
    }


def _heat_data(criteria: CriterionList, categories: Sequence[Category]) -> dict[str, Any]:
    first = criteria.first_step or 0
    spans = {c.key: c.spans for c in criteria.data} | {
        each.key: each.history.spans for each in categories if each.history is not None
    }
    bins = sorted({(s.first_step, s.last_step) for row in spans.values() for s in row})
    at = {span: i for i, span in enumerate(bins)}
    return {
        "first": first,
        "last": criteria.last_step or 0,
        "offset": display_step(first, first) - first,
        "bins": bins,
        # Of each criterion and category: [bin, met, judged, unknown] where it was asked.
        "rows": {
            key: [
                [
                    at[s.first_step, s.last_step],
                    s.met,
                    s.judged,
                    *([s.unknown] if s.unknown else []),
                ]
                for s in row
            ]
            for key, row in spans.items()
        },
    }
