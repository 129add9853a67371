"""Success by step: a panel for each task and learning rate, a line for each arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "markscheme",
}
SMOOTHED = 10
"""Steps that a point averages."""
COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """Success by step of some arms, for each seed."""

    title: str
    curves: Mapping[str, Sequence[Sequence[float]]]


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels as one SVG."""
    rows = -(-len(panels) // COLUMNS) or 1
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * COLUMNS, 3 * rows), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            for place, (name, curves) in enumerate(panel.curves.items()):
                mean = [fmean(values) for values in zip(*curves, strict=False)]
                count = min(SMOOTHED, len(mean))
                ends = range(count, len(mean) + 1)
                axis.plot(
                    ends,
                    [fmean(mean[end - count : end]) for end in ends],
                    color=colormaps["tab10"](place % 10),
                    linewidth=1.4,
                    label=name,
                )
            axis.set_title(panel.title, fontsize=9)
            axis.set(xlabel="step", ylim=(0, 1))
            axis.legend(fontsize=7)
        for axis in axes[::COLUMNS]:
            axis.set_ylabel(f"success, mean of {SMOOTHED} steps")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        figure.savefig(path, format="svg", metadata={"Date": None})
