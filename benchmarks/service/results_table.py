"""A row of the results table: what was asked, what was measured, and whether the goal is met."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One result.

    `met` is `None` where there is no goal; `values` are the raw numbers for the JSON.
    """

    figure: str
    work: str
    goal: str
    measured: str
    met: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the goal was met, as a word."""
        return {True: "met", False: "NOT met", None: ""}[self.met]


@dataclass(frozen=True)
class TimeSpent:
    """Wall time and CPU seconds by part."""

    figure: str
    work: str
    wall_s: float
    verdicts: int
    cpu_s: dict[str, float]

    @property
    def limit(self) -> str:
        """The part that was busy for most of the wall time, if any; else all waited."""
        part, busy = max(
            ((part, cpu / self.wall_s) for part, cpu in self.cpu_s.items()),
            key=lambda item: item[1],
        )
        total = sum(self.cpu_s.values()) / self.wall_s
        if busy >= BUSY:
            return f"the {part}: {busy:.0%} of a core"
        return f"waiting: all parts together compute for {total:.0%} of a core"


BUSY = 0.6
"""A part that computes for this share of the wall time is the bottleneck."""


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 20 else f"{value:.1f} ms"
