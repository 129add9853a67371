"""A figure of a run over its steps: windows, tests of shares, and the step at which it changed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import gt, mul
from typing import NamedTuple

MAX_WIDTH = 100
"""Steps of the widest window."""
MIN_STEPS = 20
"""Steps that a series must have; in fewer, windows would say nothing."""
MIN_KNOWN = 64
"""What a window must hold of what is counted."""
Z95 = 1.959963984540054
"""Of the normal distribution, 95 % is within this many standard deviations."""
_GRID = 24
"""Steps of the coarse search for a change, of which the best is refined."""

Row = tuple[float, ...]


class Window(NamedTuple):
    """Steps of a series, those at `start` to `stop` - 1, with the sums of their rows."""

    start: int
    stop: int
    row: Row


@dataclass(frozen=True)
class Series:
    """Columns of sums by step, and the figure that a row of them has.

    Sums add up over steps, so that the figure of a window is one over all that is in it, not a mean
    of means.

    Attributes:
        steps: The steps in which the figure is known, in order.
        columns: Their sums. The first is the count that `MIN_KNOWN` is about.
        figure: Returns the figure of a row whose count is not 0.
    """

    steps: Sequence[int]
    columns: Sequence[Sequence[float]]
    figure: Callable[[Row], float]

    @classmethod
    def of(
        cls,
        steps: Sequence[int],
        columns: Sequence[Sequence[float]],
        figure: Callable[[Row], float],
    ) -> "Series":
        """Return the series of steps in any order; those with no count are left out."""
        in_order = isinstance(steps, range) or not any(map(gt, steps, steps[1:]))
        if not in_order or min(columns[0], default=1) <= 0:
            known = sorted(row for row in zip(steps, *columns, strict=True) if row[1] > 0)
            steps, *columns = list(zip(*known, strict=True)) or [(), *((),) * len(columns)]
        return cls(steps, columns, figure)

    def rows(self, start: int, stop: int | None = None) -> Iterator[Row]:
        """Return the rows from one index to another."""
        return zip(*(column[start:stop] for column in self.columns), strict=True)

    @property
    def width(self) -> int:
        """Steps of a window: a quarter of the series, 100 at most."""
        return min(MAX_WIDTH, len(self.steps) // 4)

    @cached_property
    def windows(self) -> list[Window]:
        """The windows, oldest first: side by side, counted back from the last step.

        There are none in a short series. One that holds less than `MIN_KNOWN` is left out, and so
        are those before the gap if it is one of the last two: the rules look at those.
        """
        if len(self.steps) < MIN_STEPS:
            return []
        windows = [
            self.window(stop - self.width, stop)
            for stop in range(len(self.steps), self.width - 1, -self.width)
        ]
        if any(window.row[0] < MIN_KNOWN for window in windows[:2]):
            return []
        return [window for window in reversed(windows) if window.row[0] >= MIN_KNOWN]

    @cached_property
    def first(self) -> Window:
        """The first window of the series."""
        return self.window(0, self.width)

    def window(self, start: int, stop: int) -> Window:
        """Return the window from one index to another."""
        return Window(start, stop, tuple(sum(column[start:stop]) for column in self.columns))

    def at(self, window: Window) -> float:
        """Return the figure of a window."""
        return self.figure(window.row)

    def now(self, holds: Callable[[Window], bool]) -> Window | None:
        """Return the last window if `holds` is true of it and of the one before it."""
        last = self.windows[-2:]
        return last[-1] if len(last) == 2 and all(map(holds, last)) else None

    def onset(self, holds: Callable[[Window], bool], *, rising: bool) -> int:
        """Return the step at which something began that `holds` now.

        The change is looked for from the window on in which the figure was the lowest (`rising`) or
        the highest of those in which it did not hold. If it held in all, that is the first step.
        """
        others = [window for window in self.windows if not holds(window)]
        if not others:
            return self.steps[0]
        sign = 1 if rising else -1
        calm = min(reversed(others), key=lambda window: sign * self.at(window))
        return self.change(calm.start, rising=rising)

    def change(self, start: int, *, rising: bool) -> int:
        """Return the step, from index `start` on, at which the figure began to rise or fall.

        It is that of the line that fits best: level, then a ramp, then level again. A ramp of one
        step is preferred unless a longer one fits better by the Bayesian information criterion.
        """
        sign = 1.0 if rising else -1.0
        weights = self.columns[0][start:]
        values = [sign * self.figure(row) for row in self.rows(start)]
        return self.steps[start + _ramp_start(weights, values)]


def mean(row: Row) -> float:
    """Return the figure of rows that begin with count and sum."""
    return row[1] / row[0]


def difference(row: Row) -> float:
    """Return the figure of rows that begin with a count and two sums."""
    return (row[1] - row[2]) / row[0]


def correlation(row: Row) -> float:
    """Return the figure of rows of degrees of freedom, xx, yy and xy: 0 where nothing varies."""
    _, xx, yy, xy = row
    scale = math.sqrt(max(xx, 0.0)) * math.sqrt(max(yy, 0.0))
    return max(-1.0, min(1.0, xy / scale)) if scale else 0.0


def variance_by_step(series: Series, window: Window) -> float:
    """Return the variance of a window's figure, if its steps are independent.

    The figure must be linear in the sums. Rollouts of a step are alike, so that this is more than
    what independent rollouts would give.
    """
    steps, count = window.stop - window.start, window.row[0]
    if steps < 2:
        return math.inf
    middle = series.at(window)
    squares = sum(
        ((series.figure(row) - middle) * row[0]) ** 2
        for row in series.rows(window.start, window.stop)
    )
    return squares / count**2 * steps / (steps - 1)


def share_variance(met: float, judged: float) -> float:
    """Return the variance of a share; never 0, as Agresti and Coull add 2 of each."""
    share = (met + 2) / (judged + 4)
    return share * (1 - share) / judged


def wilson_low(met: float, judged: float) -> float:
    """Return the lower end of Wilson's 95 % interval of a share."""
    share, z2 = met / judged, Z95 * Z95
    spread = Z95 * math.sqrt(share * (1 - share) / judged + z2 / (4 * judged * judged))
    return (share + z2 / (2 * judged) - spread) / (1 + z2 / judged)


def fisher_low(r: float, freedom: float) -> float:
    """Return the lower end of Fisher's 95 % interval of a correlation with so many freedoms."""
    if freedom < 2:
        return -1.0
    bounded = max(-0.999999, min(0.999999, r))
    return math.tanh(math.atanh(bounded) - Z95 / math.sqrt(freedom - 1))


def phi(both: int, only_first: int, only_second: int, neither: int) -> float | None:
    """Return the correlation of two criteria, `None` where one of them does not vary."""
    first, second = both + only_first, both + only_second
    total = first + only_second + neither
    scale = first * (total - first) * second * (total - second)
    return (both * neither - only_first * only_second) / math.sqrt(scale) if scale else None


def _ramp_start(weights: Sequence[float], values: Sequence[float]) -> int:
    """Return the index at which values begin to rise; 0 if they never do.

    Least squares of `low` up to knot s, a straight line to knot e, and `high` from there on, by
    sums up to each index: all pairs of a coarse grid, then ever smaller steps from the best.
    """
    last = len(values) - 1
    if last < 1:
        return 0
    wt = [w * t for t, w in enumerate(weights)]
    wy: list[float] = list(map(mul, weights, values))
    # Sums up to each index: of weights, and of them times t, t², y and y t.
    columns: tuple[Iterable[float], ...] = (
        weights,
        wt,
        (each * t for t, each in enumerate(wt)),
        wy,
        (each * t for t, each in enumerate(wy)),
    )
    sw, st, stt, sy, sty = (list(accumulate(column, initial=0.0)) for column in columns)
    w_all, y_all = sw[-1], sy[-1]
    yy_all: float = sum(map(mul, wy, values))
    level = yy_all - y_all * y_all / w_all
    flat = 1e-12 * w_all

    def error(s: int, e: int) -> float:
        """Return the squared error of the best rising fit with these knots."""
        a, length = s + 1, e - s
        w, t, y = sw[e] - sw[a], st[e] - st[a], sy[e] - sy[a]
        after, y_after = w_all - sw[e], y_all - sy[e]
        f = (t - s * w) / length + after
        ff = (stt[e] - stt[a] - 2 * s * t + s * s * w) / length**2 + after
        fy = (sty[e] - sty[a] - s * y) / length + y_after
        # y = low + rise * f, with weights.
        spread = ff - f * f / w_all
        rise = (fy - f * y_all / w_all) / spread if spread > flat else 0.0
        return max(level - rise * rise * spread, 0.0) if rise > 0 else level

    def step_error_at(s: int) -> float:
        """Return `error(s, s + 1)`, of which little is left: it is asked for at every index."""
        after, y_after = w_all - sw[s + 1], y_all - sy[s + 1]
        spread = after - after * after / w_all
        rise = (y_after - after * y_all / w_all) / spread if spread > flat else 0.0
        return max(level - rise * rise * spread, 0.0) if rise > 0 else level

    step_errors = list(map(step_error_at, range(last)))
    step_error = min(step_errors)
    step_at = step_errors.index(step_error)
    hop = max(1, last // _GRID)
    knots = range(0, last + 1, hop)
    ramp_error, s, e = min(
        (error(s, e), s, e) for i, s in enumerate(knots) for e in (*knots[i + 1 :], last) if e > s
    )
    while hop:
        near = [
            (error(s + i, e + j), s + i, e + j)
            for i in (-hop, 0, hop)
            for j in (-hop, 0, hop)
            if 0 <= s + i < e + j <= last
        ]
        best = min(near)
        if best[0] < ramp_error:
            ramp_error, s, e = best
        else:
            hop //= 2
    tiny = 1e-12 * max(yy_all, 1e-12)
    gain = len(values) * math.log((step_error + tiny) / (ramp_error + tiny))
    return (s if gain > math.log(len(values)) else step_at) + 1
