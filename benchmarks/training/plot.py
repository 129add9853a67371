"""Reward by rollouts and by seconds: one line a method, the mean over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS = ("#2f7ed8", "#d9822b", "#3fa66b", "#b0479e", "#6b6b6b")
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "markscheme",
}
SMOOTHED = 5
"""Steps that a point averages: a step sees two of the ten prompts, five steps see all."""


@dataclass(frozen=True)
class Curve:
    """A method's rewards and seconds by step, for each seed."""

    name: str
    rewards: Sequence[Sequence[float]]
    seconds: Sequence[Sequence[float]]


def draw(path: Path, curves: Sequence[Curve], *, rollouts: int) -> None:
    """Write the plot; `rollouts` are those of one step."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        by_rollouts, by_seconds = figure.subplots(1, 2, sharey=True)
        for curve, colour in zip(curves, COLOURS, strict=False):
            count = min(map(len, curve.rewards))
            smooth = [_smoothed(series[:count]) for series in curve.rewards]
            clocks = [list(accumulate(series[:count]))[SMOOTHED - 1 :] for series in curve.seconds]
            steps = [rollouts * step for step in range(SMOOTHED, count + 1)]
            for axes, places in ((by_rollouts, [steps] * len(smooth)), (by_seconds, clocks)):
                for place, series in zip(places, smooth, strict=True):
                    axes.plot(place, series, color=colour, linewidth=0.6, alpha=0.35)
                axes.plot(
                    [fmean(values) for values in zip(*places, strict=True)],
                    [fmean(values) for values in zip(*smooth, strict=True)],
                    color=colour,
                    linewidth=1.8,
                    label=curve.name,
                )
        by_rollouts.set(
            xlabel="rollouts",
            ylabel=f"rubric reward of the rollouts, {SMOOTHED} steps",
            ylim=(0, 1),
        )
        by_seconds.set(xlabel="seconds")
        by_rollouts.legend(loc="lower right")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _smoothed(series: Sequence[float]) -> list[float]:
    return [fmean(series[end - SMOOTHED : end]) for end in range(SMOOTHED, len(series) + 1)]
