"""Draw charts as SVG on the server. Pure: figures in, markup out.

An unknown value leaves a gap; it is never drawn at 0. Colours come from the style sheet by class,
so that a chart needs no inline style.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from markupsafe import Markup

from markscheme.schema import CriterionSpan, RolloutPoint, StepSpan, display_step
from markscheme_server.pages.words import decimal, usd, whole

WIDE, NARROW, SMALL = (1216, 300), (366, 210), (276, 130)
"""Width and height of the charts: for a screen, for a phone, and for one of four in a row."""
SMOOTHED_SPANS = 9
"""Spans that the smoothed line averages over, at most."""
SMOOTHED_SHARE = 0.2
"""Share of all spans that it averages over, at most: a short run keeps its shape."""
COLOURS = 10
"""Colours of the heat map, from none met to all met."""
MAX_GAP = 3
"""A line is broken between points that are more than this many typical distances apart."""

Points = list[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotted part of a chart, and the values at its edges."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float] = (0.0, 1.0)
    left: int = 38
    right: int = 12
    top: int = 10
    bottom: int = 22

    def at_x(self, value: float) -> float:
        """Return the x coordinate of a value."""
        low, high = self.x
        share = (value - low) / (high - low) if high > low else 0.5
        return self.left + share * (self.width - self.left - self.right)

    def at_y(self, value: float) -> float:
        """Return the y coordinate of a value, clipped to the axis."""
        low, high = self.y
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    @property
    def floor(self) -> int:
        """The y coordinate of the horizontal axis."""
        return self.height - self.bottom


def middle(span: StepSpan) -> float:
    """Return the middle step of a span, where its point is drawn."""
    return (span.first_step + span.last_step) / 2


def segments(points: Points) -> list[list[tuple[float, float]]]:
    """Return the runs of consecutive known values; a line connects only points of one run."""
    gaps = [after - before for (before, _), (after, _) in pairwise(points)]
    usual = median(gaps) if gaps else 0.0
    found: list[list[tuple[float, float]]] = [[]]
    last = None
    for x, y in points:
        if y is None or (last is not None and x - last > MAX_GAP * usual):
            found.append([])
        if y is not None:
            found[-1].append((x, y))
        last = x
    return [stretch for stretch in found if stretch]


def smoothed_spans(count: int) -> int:
    """Return over how many of `count` spans the smoothed line averages: an odd number."""
    return max(1, min(SMOOTHED_SPANS, (int(count * SMOOTHED_SHARE) - 1) | 1))


def smooth(points: Points, weights: Sequence[int], over: int) -> Points:
    """Return weighted moving averages, within each run of known values.

    Args:
        points: The values.
        weights: How many known values each point stands for.
        over: Points that each mean averages, an odd number.
    """
    weight = {x: w for (x, _), w in zip(points, weights, strict=True)}
    means: dict[float, float] = {}
    half = over // 2
    for stretch in segments(points):
        for i, (x, _) in enumerate(stretch):
            near = stretch[max(0, i - half) : i + half + 1]
            total = sum(weight[at] for at, _ in near)
            means[x] = sum(weight[at] * y for at, y in near) / total if total else stretch[i][1]
    return [(x, means.get(x)) for x, _ in points]


def line(frame: Frame, points: Points, kind: str) -> Markup:
    """Draw a line of CSS class `kind`, broken where values are unknown."""
    parts = []
    for stretch in segments(points):
        if len(stretch) == 1:  # a point alone is a short stroke
            (x, y) = stretch[0]
            parts.append(f"M{_n(frame.at_x(x) - 2)} {_n(frame.at_y(y))}h4")
        else:
            parts.append(
                "M" + "L".join(f"{_n(frame.at_x(x))} {_n(frame.at_y(y))}" for x, y in stretch)
            )
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(parts)) if parts else Markup("")


def band(frame: Frame, low: Points, high: Points) -> Markup:
    """Draw the area between two lines."""
    parts = []
    for below, above in zip(segments(low), segments(high), strict=True):
        edge = [*above, *reversed(below)]
        parts.append(
            "M" + "L".join(f"{_n(frame.at_x(x))} {_n(frame.at_y(y))}" for x, y in edge) + "Z"
        )
    return Markup('<path class="band" d="{}"/>').format("".join(parts)) if parts else Markup("")


def unknown_stretches(spans: Sequence[StepSpan]) -> list[tuple[int, int, str]]:
    """Return the stretches of steps in which no reward is known, with their most frequent reason.

    Neighbouring spans are one stretch.
    """
    found: list[tuple[int, int, dict[str, int]]] = []
    before: StepSpan | None = None
    for span in spans:
        if span.reward is None and span.unscored:
            if found and before is not None and before.reward is None:
                first, _, reasons = found.pop()
            else:
                first, reasons = span.first_step, {}
            for reason, count in span.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
            found.append((first, span.last_step, reasons))
        before = span
    return [
        (first, last, max(reasons, key=lambda name: reasons[name], default="not known"))
        for first, last, reasons in found
    ]


def reward_chart(
    spans: Sequence[StepSpan], first_step: int, *, size: tuple[int, int] = WIDE, label: str
) -> Markup:
    """Return rewards by step: band, mean, teacher and second judge.

    The axis goes from 0 to 1, or from -1 where a reward is below 0 (`clamp` `signed`).
    """
    lowest = min((s.low for s in spans if s.low is not None), default=0.0)
    frame = Frame(*size, _steps(spans), (-1.0 if lowest < 0 else 0.0, 1.0))
    known = [s.rollouts - s.unscored for s in spans]
    rewards: Points = [(middle(s), s.reward) for s in spans]
    teacher: Points = [(middle(s), s.teacher) for s in spans]
    second: Points = [(middle(s), s.second_judge) for s in spans]
    bounds = [(middle(s), s.low, s.high) for s in spans]
    both = [
        (x, low, high) if None not in (low, high) else (x, None, None) for x, low, high in bounds
    ]
    parts = [_grid(frame, 4)]
    for first, last, reason in unknown_stretches(spans):
        x0, x1 = frame.at_x(first - 0.5), frame.at_x(last + 0.5)
        x0, x1 = max(frame.left, x0), min(frame.width - frame.right, x1)
        parts.append(
            Markup(
                '<rect class="hole" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
            ).format(
                _n(x0),
                frame.top,
                _n(max(2.0, x1 - x0)),
                frame.floor - frame.top,
                f"{reason}, steps {_range(first, last, first_step)}",
            )
        )
        if size == WIDE and x1 < frame.width - 260:
            parts.append(
                Markup('<text class="hole-lab" x="{}" y="{}">{}</text>').format(
                    _n(x1 + 5),
                    frame.top + 10,
                    f"{reason.replace('_', ' ')}, steps {_range(first, last, first_step)}",
                )
            )
    over = smoothed_spans(len(spans))
    parts += [
        band(frame, [(x, low) for x, low, _ in both], [(x, high) for x, _, high in both]),
        line(frame, rewards, "raw") if size == WIDE else Markup(""),
        line(frame, smooth(teacher, known, over), "teacher"),
        line(frame, smooth(second, [1] * len(spans), over), "second"),
        line(frame, smooth(rewards, known, over), "line"),
        _step_axis(frame, first_step),
        _cross(frame),
    ]
    return _svg(
        frame,
        f"chart {'wide' if size == WIDE else 'narrow'}",
        label,
        parts,
        _pointer(frame),
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """The rewards of one of several runs. `weights`: how many known rewards each point has."""

    name: str
    points: Points
    weights: Sequence[int]


def comparison_chart(
    curves: Sequence[Curve],
    steps: tuple[int, int],
    *,
    size: tuple[int, int] = WIDE,
    label: str,
) -> Markup:
    """Return smoothed rewards of several runs, each with its name at the end of its line.

    `steps`: the first and the last, counted from 1. The axis is that of `reward_chart`.
    """
    lines = [smooth(c.points, c.weights, smoothed_spans(len(c.points))) for c in curves]
    lowest = min((y for points in lines for _, y in points if y is not None), default=0.0)
    x = float(steps[0]), float(steps[1])
    frame = Frame(*size, x, (-1.0 if lowest < 0 else 0.0, 1.0), right=22)
    parts = [_grid(frame, 4)]
    parts += [line(frame, points, f"c{order}") for order, points in enumerate(lines)]
    parts += _end_labels(frame, [(c.name, points) for c, points in zip(curves, lines, strict=True)])
    parts += [_step_axis(frame, 1), _cross(frame)]
    return _svg(
        frame,
        f"chart {'wide' if size == WIDE else 'narrow'}",
        label,
        parts,
        _pointer(frame),
    )


def swatch(order: int) -> Markup:
    """Return a piece of the line of a run in `comparison_chart`, for a legend."""
    return Markup(
        '<svg class="chart swatch" viewBox="0 0 30 8" aria-hidden="true">'
        '<path class="c{}" d="M0 4h30"/></svg>'
    ).format(order)


def _end_labels(frame: Frame, lines: Sequence[tuple[str, Points]]) -> list[Markup]:
    """Return names beside the last known points of lines, none on another."""
    ends = []
    for name, points in lines:
        known = [(x, y) for x, y in points if y is not None]
        if known:
            ends.append((frame.at_y(known[-1][1]), frame.at_x(known[-1][0]) + 5, name))
    placed: list[tuple[float, float]] = []
    parts = []
    for y, x, name in sorted(ends):
        while near := [other for at, other in placed if abs(at - x) < 12 and abs(other - y) < 12]:
            y = max(near) + 12
        placed.append((x, y))
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(_n(x), _n(y + 4), name))
    return parts


def small_chart(
    spans: Sequence[StepSpan],
    values: Sequence[float | None],
    first_step: int,
    *,
    label: str,
    bounds: tuple[float, float] | None = None,
    bars: bool = False,
) -> Markup:
    """Draw one figure by step, as a line or as bars. `bounds`: of the axis; default: from 0."""
    high = max((v for v in values if v is not None), default=1.0)
    frame = Frame(*SMALL, _steps(spans), bounds or (0.0, _round_up(high)), left=44, right=12)
    parts = [_grid(frame, 2)]
    if bars:
        low, path = _n(frame.at_y(0)), ""
        for span, value in zip(spans, values, strict=True):
            if value:
                x0, x1 = frame.at_x(span.first_step - 0.5), frame.at_x(span.last_step + 0.5)
                path += f"M{_n(x0)} {low}V{_n(frame.at_y(value))}H{_n(max(x1, x0 + 1))}V{low}Z"
        parts.append(Markup('<path class="bars" d="{}"/>').format(path))
    else:
        points: Points = [(middle(s), v) for s, v in zip(spans, values, strict=True)]
        known = [s.rollouts - s.unscored for s in spans]
        smoothed = smooth(points, known, smoothed_spans(len(spans)))
        parts += [line(frame, points, "raw"), line(frame, smoothed, "line")]
    parts.append(_step_axis(frame, first_step, count=2))
    return _svg(frame, "chart", label, parts)


def sparkline(curve: Sequence[float | None]) -> Markup:
    """Return the mean reward of a run, from 0 to 1."""
    frame = Frame(120, 26, (0.0, max(1.0, len(curve) - 1.0)), left=2, right=2, top=2, bottom=2)
    points: Points = [(float(i), value) for i, value in enumerate(curve)]
    known = [value for value in curve if value is not None]
    label = f"reward from {decimal(known[0])} to {decimal(known[-1])}" if known else "no reward"
    return _svg(frame, "chart spark", label, [line(frame, points, "line")])


def heat_row(spans: Sequence[CriterionSpan], first: int, last: int, label: str) -> Markup:
    """Draw one criterion over the steps `first` to `last`: darker where more responses met it.

    Steps without a verdict stay unpainted: the hatched background shows. Each colour is one path,
    in units of steps.
    """
    runs: dict[int, list[tuple[int, int]]] = {}
    for span in spans:
        if not span.judged:
            continue
        colour = min(COLOURS - 1, int(COLOURS * span.met / span.judged))
        start, end = span.first_step - first, span.last_step - first + 1
        stretches = runs.setdefault(colour, [])
        if stretches and stretches[-1][1] == start:
            stretches[-1] = (stretches[-1][0], end)
        else:
            stretches.append((start, end))
    paths = Markup("").join(
        Markup('<path class="k{}" d="{}"/>').format(
            colour, "".join(f"M{a} 0h{b - a}v1H{a}z" for a, b in stretches)
        )
        for colour, stretches in sorted(runs.items())
    )
    return Markup(
        '<svg class="heat-row" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg>'
    ).format(last - first + 1, label, paths)


def heat_axis(first: int, last: int, first_step: int) -> Markup:
    """Return the steps above the heat map."""
    frame = Frame(540, 16, (float(first), float(last)), left=1, right=1, top=0, bottom=4)
    return _svg(frame, "chart heat-axis", "", [_labels(frame, first_step, 12, 5)])


def colour_legend() -> Markup:
    """Return the legend of the heat map's colours."""
    cells = Markup("").join(
        Markup('<rect class="k{0}" x="{0}" width="1" height="1"/>').format(i)
        for i in range(COLOURS)
    )
    return Markup(
        '<svg class="ramp" viewBox="0 0 {} 1" preserveAspectRatio="none" aria-hidden="true">'
        "{}</svg>"
    ).format(COLOURS, cells)


def dots(rollouts: Sequence[RolloutPoint], teacher: float | None) -> Markup:
    """Return the rewards of a group as dots on a line from 0 to 1, and the teacher's as a stroke.

    A hollow dot at the right, off the line, stands for rewards that are not known.
    """
    known = sorted(r.reward for r in rollouts if r.reward is not None)
    unknown = len(rollouts) - len(known)
    low = -1.0 if known and known[0] < 0 else 0.0
    frame = Frame(124, 14, (low, 1.0), left=5, right=19, top=0, bottom=0)
    parts = [Markup('<path class="axis" d="M5 7h100"/>')]
    if teacher is not None:
        parts.append(Markup('<path class="tm" d="M{} 1v12"/>').format(_n(frame.at_x(teacher))))
    # A stroke without length and with round ends is a dot.
    places = "".join(f"M{_n(frame.at_x(reward))} 7h0" for reward in known)
    parts.append(Markup('<path class="d" d="{}"/>').format(places))
    if unknown:
        parts.append(Markup('<circle class="u" cx="116" cy="7" r="3"/>'))
    label = f"rewards {', '.join(decimal(reward) for reward in known) or 'not known'}"
    if unknown and known:
        label += f"; {unknown} not known"
    return _svg(frame, "dots", label, parts)


def reward_bar(reward: float | None) -> Markup:
    """Draw a reward as a bar."""
    width = 0.0 if reward is None else max(0.0, 100 * reward)
    return Markup(
        '<svg class="rail" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="{}" height="6"/></svg>'
    ).format(_n(width))


def stacked_days(
    days: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], *, label: str
) -> Markup:
    """Return a bar for each day, with one part for each of the named series, in dollars."""
    totals = [sum(values[i] for _, values in series) for i in range(len(days))]
    frame = Frame(
        *WIDE,
        (-0.5, max(0.5, len(days) - 0.5)),
        (0.0, _round_up(max(totals, default=1.0))),
        left=64,
    )
    parts = [_grid(frame, 4, usd)]
    base = [0.0] * len(days)
    half = 0.36
    for order, (name, values) in enumerate(series):
        path = ""
        for i, value in enumerate(values):
            if value:
                x0, x1 = frame.at_x(i - half), frame.at_x(i + half)
                y0, y1 = frame.at_y(base[i]), frame.at_y(base[i] + value)
                path += f"M{_n(x0)} {_n(y0)}V{_n(y1)}H{_n(x1)}V{_n(y0)}z"
            base[i] += value
        parts.append(
            Markup('<path class="part p{}" d="{}"><title>{}</title></path>').format(
                order, path, name
            )
        )
    step = max(1, math.ceil(len(days) / 10))
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _n(frame.at_x(i)), frame.height - 6, days[i][5:]
        )
        for i in range(0, len(days), step)
    ]
    return _svg(frame, "chart", label, parts)


def bullet(
    spent: float, *, soft: float | None, hard: float | None, projected: float | None
) -> Markup:
    """Return a budget as a bar: spent, projected, and strokes at its limits."""
    most = max(value for value in (spent, soft, hard, projected, 1e-9) if value is not None)
    frame = Frame(400, 18, (0.0, most), left=2, right=2, top=0, bottom=0)
    parts = []
    if projected is not None:
        parts.append(
            Markup('<rect class="projected" x="2" y="5" width="{}" height="8"/>').format(
                _n(frame.at_x(projected) - 2)
            )
        )
    parts.append(
        Markup('<rect class="spent" x="2" y="5" width="{}" height="8"/>').format(
            _n(frame.at_x(spent) - 2)
        )
    )
    parts += [
        Markup('<path class="{}" d="M{} 0v18"/>').format(name, _n(frame.at_x(value)))
        for name, value in (("soft", soft), ("hard", hard))
        if value is not None
    ]
    said = [
        f"{name} {usd(value)}"
        for name, value in (
            ("spent", spent),
            ("soft limit", soft),
            ("hard limit", hard),
            ("projected", projected),
        )
        if value is not None
    ]
    return _svg(frame, "bullet", ", ".join(said), parts)


def ticks(first: float, last: float, count: int = 5) -> list[int]:
    """Return at most `count` whole numbers from first to last, the ends among them."""
    low, high = math.ceil(first), math.floor(last)
    if high <= low:
        return [low]
    distance = (high - low) / max(1, count - 1)
    unit = 10 ** math.floor(math.log10(distance)) if distance >= 1 else 1
    step = max(1, next((unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= distance), unit * 10))
    step = math.ceil(step)
    inner = range(step * (low // step + 1), high, step)
    near = 0.5 * step
    return [low, *(v for v in inner if v - low > near and high - v > near), high]


def _n(value: float) -> str:
    """Format a coordinate; one decimal is finer than a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _range(first: int, last: int, first_step: int) -> str:
    shown = [whole(display_step(step, first_step)) for step in (first, last)]
    return shown[0] if first == last else "–".join(shown)


def _steps(spans: Sequence[StepSpan]) -> tuple[float, float]:
    return (float(spans[0].first_step), float(spans[-1].last_step)) if spans else (0.0, 1.0)


def _round_up(value: float) -> float:
    """Return the next round number from `value` on."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * m for m in (1, 1.5, 2, 3, 4, 5, 8, 10) if unit * m >= value * (1 - 1e-12))


def _grid(frame: Frame, parts: int, write: object = None) -> Markup:
    low, high = frame.y
    lines = []
    for i in range(parts + 1):
        value = low + (high - low) * i / parts
        y = frame.at_y(value)
        digits = 2 if parts == 4 else 1
        text = (
            write(value)
            if callable(write)
            else whole(round(value))
            if high > 4
            else decimal(value, digits)
        )
        lines.append(
            Markup(
                '<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(frame.left, _n(y), frame.width - frame.right, frame.left - 6, _n(y + 4), text)
        )
    return Markup("").join(lines)


def _step_axis(frame: Frame, first_step: int, count: int = 5) -> Markup:
    axis = Markup('<path class="axis" d="M{} {}H{}"/>').format(
        frame.left, frame.floor, frame.width - frame.right
    )
    return axis + _labels(frame, first_step, frame.height - 6, count)


def _labels(frame: Frame, first_step: int, y: int, count: int) -> Markup:
    offset = display_step(first_step, first_step) - first_step
    shown = ticks(frame.x[0] + offset, frame.x[1] + offset, count)
    return Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _n(frame.at_x(step - offset)),
            y,
            "start"
            if i == 0 and len(shown) > 1
            else "end"
            if i and i == len(shown) - 1
            else "middle",
            whole(step),
        )
        for i, step in enumerate(shown)
    )


def _cross(frame: Frame) -> Markup:
    """Return the vertical line that follows the pointer."""
    return Markup('<line class="cross" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
        frame.left, frame.top, frame.floor
    )


def _pointer(frame: Frame) -> str:
    """Return the attributes by which the script shows the figures under the pointer."""
    return (
        f' data-series="reward-data" data-plot="{frame.left},{frame.width - frame.right}"'
        f' data-steps="{frame.x[0]},{frame.x[1]}"'
    )


def _svg(
    frame: Frame, kind: str, label: str, parts: Iterable[Markup], attributes: str = ""
) -> Markup:
    named = (
        Markup('role="img" aria-label="{}"').format(label)
        if label
        else Markup('aria-hidden="true"')
    )
    return Markup('<svg class="{}" viewBox="0 0 {} {}" {}{}>{}</svg>').format(
        kind, frame.width, frame.height, named, Markup(attributes), Markup("").join(parts)
    )
