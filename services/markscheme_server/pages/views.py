"""What each page shows, made from the answers that the API gives. Pure."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from markscheme.names import path_segment
from markscheme.schema import (
    Budget,
    CategoryHistory,
    Criterion,
    CriterionHistory,
    CriterionList,
    Finding,
    FindingList,
    GroupDetail,
    GroupResponse,
    JudgePrompt,
    Lineage,
    LineageRubric,
    LineageRun,
    Replay,
    ReplayDetail,
    Rubric,
    RubricHealth,
    RunDetail,
    RunGroupList,
    RunSummary,
    StepList,
    StepSpan,
    UsageReport,
    display_step,
)
from markscheme.vocabulary import GroupSort
from markscheme_server.pages import charts, evidence
from markscheme_server.pages.words import CATEGORIES, decimal, percent, share, signed, whole

SHORT_RUN = 2
"""From this many spans on, rewards are shown as a curve; below, as a table."""
_GUARD = re.compile(r"\s*\bCounts only (for|if|when)\b", re.IGNORECASE)
_GUARD_WORDS = re.compile(r"Counts (only) (for a response that)?", re.IGNORECASE)


def path(*parts: str, **query: Any) -> str:
    """Return an address below `/pages/`, without a leading slash.

    `None` leaves a value of the query out; a list repeats its name.
    """
    stated = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    address = "/".join(map(path_segment, parts))
    return f"{address}?{urlencode(stated, doseq=True)}" if stated else address


def headline(text: str) -> tuple[str, str]:
    """Split a criterion into its statement and the condition that the builtin judge adds to it."""
    match = _GUARD.search(text)
    if match is None or match.start() == 0:
        return text, ""
    return text[: match.start()], text[match.start() :].strip()


@dataclass(frozen=True, slots=True)
class Label:
    """How a criterion is shown in a list.

    `condition`: the condition of `headline` in short, empty without one. `note`: what tells it from
    others with the same statement.
    """

    statement: str
    condition: str
    note: str = ""


def labels(criteria: Sequence[tuple[str, str]]) -> list[Label]:
    """Return labels of criteria, no two of them alike. `criteria`: text and a name of each.

    A criterion whose statement others have too shows its condition, and its name if that is the
    same.
    """
    found = []
    for text, _ in criteria:
        statement, condition = headline(text)
        short = _GUARD_WORDS.sub(lambda m: "only if it" if m[2] else "only ", condition)
        found.append((statement, short.removesuffix(".")))
    statements, both = Counter(statement for statement, _ in found), Counter(found)
    made = []
    for (statement, condition), (_, name) in zip(found, criteria, strict=True):
        notes = []
        if statements[statement] > 1 and condition:
            notes.append(condition)
        if both[statement, condition] > 1:
            notes.append(name)
        made.append(Label(statement, condition, ", ".join(notes)))
    return made


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


def finding_address(run_id: str, finding: Finding) -> str:
    """Return the address of the groups that show a finding."""
    chosen = finding.groups
    return path(
        "runs",
        run_id,
        first_step=chosen.first_step,
        last_step=chosen.last_step,
        criterion=chosen.criterion,
        sort=None if chosen.sort == "newest" else chosen.sort,
    )


def replay_page(replay: ReplayDetail) -> dict[str, Any]:
    """Return what the page of a replay shows."""
    return {
        "replay": replay,
        "c": replay.comparison,
        "changed": replay_changes(replay),
        "flips": list(
            zip(
                replay.comparison.criteria,
                labels([(each.text, each.key[:8]) for each in replay.comparison.criteria]),
                strict=True,
            )
        ),
        "signed3": lambda value: signed(value, 3),
        "p_value": p_value,
    }


def replay_changes(replay: Replay) -> list[tuple[str, str]]:
    """Return what a replay changes: names and values."""
    return [
        (name, value)
        for name, value in (
            ("rubric", replay.rubric_id),
            ("judge", replay.judge),
            ("view", replay.view),
            ("mode", replay.verify),
        )
        if value is not None
    ]


def p_value(p: float | None) -> str:
    """Write the result of a test."""
    return "< 0.001" if p is not None and p < 0.001 else decimal(p, 3)


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that spreadsheets run as formulas."""


def steps_csv(steps: StepList) -> str:
    """Return spans of steps as a table of comma-separated values; what is not known is empty."""
    out = io.StringIO()
    names = [name for name in StepSpan.model_fields if name not in ("reasons", "metrics")]
    reasons = sorted({name for span in steps.data for name in span.reasons})
    metrics = sorted({name for span in steps.data for name in span.metrics})
    writer = csv.writer(out, lineterminator="\n")
    # A trainer may give its metrics names that a spreadsheet would run as formulas.
    columns = [f"'{name}" if name.startswith(FORMULA) else name for name in metrics]
    writer.writerow([*names, *(f"unscored_{name}" for name in reasons), *columns])
    for span in steps.data:
        row = [getattr(span, name) for name in names]
        row += [span.reasons.get(name, 0) for name in reasons]
        row += [span.metrics.get(name) for name in metrics]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Column:
    """A response of a group: a column of the matrix and a card with its text."""

    name: str
    response: GroupResponse
    passage: evidence.Passage | None
    verdicts: Mapping[str, Any]
    missed: list[str]
    is_teacher: bool
    is_best: bool
    bar: Markup


def group_page(
    group: GroupDetail, shown: Sequence[str] = (), prompt: JudgePrompt | None = None
) -> dict[str, Any]:
    """Return what the page of a group shows: teachers first, then rollouts by reward.

    `shown`: names of the rollouts whose texts are shown; none: all of them. `prompt`: what the
    judge saw of one of them.
    """
    names = {
        id(response): "teacher" if len(group.teachers) == 1 else f"teacher {i}"
        for i, response in enumerate(group.teachers, 1)
    }
    ranked = sorted(group.rollouts, key=lambda r: (r.reward is None, -(r.reward or 0.0)))
    best = ranked[0] if ranked and ranked[0].reward is not None else None
    columns = [
        _column(r, names.get(id(r), r.id), is_teacher=id(r) in names, is_best=r is best)
        for r in [*group.teachers, *ranked]
    ]
    met = {}
    for criterion in group.criteria:
        decided = [
            v.met
            for r in group.rollouts
            for v in r.verdicts
            if v.criterion_id == criterion.id and v.met is not None
        ]
        met[criterion.id] = (sum(decided), len(decided))
    return {
        "group": group,
        "columns": columns,
        "cards": [c for c in columns if not shown or c.name in shown],
        "compared": bool(shown),
        "met": met,
        "unknown": sum(r.reward is None for r in group.rollouts),
        "judge_prompt": prompt,
        "step": None if group.step is None else display_step(group.step, group.first_step or 0),
        "rings": any(v.second_judge_met is not None for r in group.rollouts for v in r.verdicts),
        "headline": headline,
    }


def _column(response: GroupResponse, name: str, *, is_teacher: bool, is_best: bool) -> Column:
    return Column(
        name,
        response,
        evidence.mark(response.text, response.verdicts) if response.text else None,
        {verdict.criterion_id: verdict for verdict in response.verdicts},
        [v.criterion_id for v in response.verdicts if v.met is False],
        is_teacher,
        is_best,
        charts.reward_bar(response.reward),
    )


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


def category_title(category: str | None) -> str:
    """Return the title of a category of criteria."""
    return CATEGORIES.get(category, "Other criteria")


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
            "Reward with length, r in a group",
            signed(_newest(correlation)),
            correlation,
            {"bounds": (-wide, wide)},
        ),
        ("Groups with spread", percent(_newest(spread)), spread, {"bounds": (0.0, 1.0)}),
        (
            "Not known, share of rollouts",
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


def steps_of(run: RunSummary) -> str:
    """Write how far a run is: `1,000 of 2,000`."""
    if run.last_step is None:
        return "–"
    done = whole(display_step(run.last_step, run.first_step or 0))
    return done if run.steps is None else f"{done} of {whole(run.steps)}"


@dataclass(frozen=True, slots=True)
class Change:
    """How a criterion differs from the parent's. `before` is null where it is new."""

    before: Criterion | None
    after: Criterion | None

    @property
    def points(self) -> str:
        """The change of its points, in words."""
        if self.before is None or self.after is None or self.before.points == self.after.points:
            return ""
        return f"{decimal(self.before.points, 0)} to {decimal(self.after.points, 0)} points"


def changes(before: Sequence[Criterion], after: Sequence[Criterion]) -> list[Change]:
    """Return added, removed and changed criteria.

    Criteria with equal texts are the same; of the rest, those with equal ids were reworded.
    """
    own = {criterion.text: criterion for criterion in after}
    same = {c.text for c in before if c.text in own}
    left = {c.id: c for c in before if c.text not in same}
    found = []
    for criterion in after:
        if criterion.text in same:
            old = next(c for c in before if c.text == criterion.text)
            if old.points != criterion.points:
                found.append(Change(old, criterion))
        else:
            found.append(Change(left.pop(criterion.id, None), criterion))
    return [*found, *(Change(criterion, None) for criterion in left.values())]


@dataclass(frozen=True, slots=True)
class Branch:
    """A rubric of a lineage and what was made from it."""

    rubric: LineageRubric
    how: str
    children: list["Branch"]


def rubric_page(
    rubric: Rubric, parent: Rubric | None, lineage: Lineage, health: RubricHealth
) -> dict[str, Any]:
    """Return what the page of a rubric shows."""
    return {
        "rubric": rubric,
        "parent": parent,
        "changes": changes(parent.criteria, rubric.criteria) if parent is not None else [],
        "tree": _tree(lineage),
        "lineage": lineage,
        "runs": [node for node in lineage.nodes if isinstance(node, LineageRun)],
        "health": {each.criterion_id: each for each in health.criteria},
        "groups": health.groups,
        "headline": headline,
        "share": share,
    }


def _tree(lineage: Lineage) -> list[Branch]:
    """Return the rubrics of a lineage, each below the one that it was made from."""
    rubrics = {node.id: node for node in lineage.nodes if isinstance(node, LineageRubric)}
    made_from = {
        edge.target: edge
        for edge in lineage.edges
        if edge.kind in ("version", "fork") and edge.source in rubrics
    }

    def branch(node: LineageRubric) -> Branch:
        edge = made_from.get(node.id)
        return Branch(
            node,
            edge.kind if edge is not None else node.origin,
            [
                branch(rubrics[target])
                for target, edge in made_from.items()
                if edge.source == node.id and target in rubrics
            ],
        )

    return [branch(node) for node in rubrics.values() if node.id not in made_from]


SERIES = 6
"""Runs with a colour of their own in the chart of daily cost; the others share one."""


def days_before(day: date, count: int) -> date:
    """Return the first of the `count` days that end with `day`."""
    return day - timedelta(days=count - 1)


def cost_page(
    by_day: UsageReport,
    by_run: UsageReport,
    by_role: UsageReport,
    budgets: Sequence[tuple[Budget, float | None]],
) -> dict[str, Any]:
    """Return what the page of the cost shows. `budgets`: each with what its run will cost."""
    shadow = [bucket for bucket in by_role.data if bucket.role == "shadow"]
    totals: dict[str, float] = {}
    for bucket in by_day.data:
        totals[bucket.run or "no run"] = totals.get(bucket.run or "no run", 0.0) + bucket.cost_usd
    ranked = sorted((name for name in totals if totals[name]), key=lambda n: -totals[n])
    named = ranked[:SERIES]
    days: list[str] = []
    if (first := by_day.since) and by_day.data:
        last = max(bucket.day for bucket in by_day.data if bucket.day is not None)
        days = [str(first + timedelta(days=i)) for i in range((last - first).days + 1)]
    at = {day: i for i, day in enumerate(days)}
    series = {
        name: [0.0] * len(days) for name in [*named, *(["others"] if ranked[SERIES:] else [])]
    }
    for bucket in by_day.data:
        name = bucket.run or "no run"
        if bucket.cost_usd and bucket.day is not None:
            series[name if name in named else "others"][at[str(bucket.day)]] += bucket.cost_usd
    return {
        "since": by_day.since,
        "total": by_run.total,
        "shadow": {
            "cost_usd": sum(bucket.cost_usd for bucket in shadow),
            "calls": sum(bucket.calls for bucket in shadow),
            "unpriced_calls": sum(bucket.unpriced_calls for bucket in shadow),
        },
        "chart": charts.stacked_days(days, list(series.items()), label="Judging cost by day")
        if series
        else None,
        "series": list(series),
        "buckets": sorted(by_run.data, key=lambda b: (-b.cost_usd, -b.saved_usd)),
        "truncated": by_run.truncated,
        "budgets": [
            (
                budget,
                projected,
                charts.bullet(
                    budget.spent_usd,
                    soft=budget.soft_usd,
                    hard=budget.hard_usd,
                    projected=projected,
                ),
            )
            for budget, projected in budgets
        ],
    }
