"""A figure's row: what was asked for, what was measured, and whether it is met."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """``met`` is ``None`` where there is no goal: the row informs. ``values``: the numbers behind, for the JSON."""

    figure: str
    work: str
    goal: str
    measured: str
    met: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return {True: "met", False: "NOT met", None: ""}[self.met]


@dataclass(frozen=True)
class TimeSpent:
    """Where the time of a figure went: wall time, and CPU seconds by part."""

    figure: str
    work: str
    wall_s: float
    verdicts: int
    cpu_s: dict[str, float]

    @property
    def limit(self) -> str:
        """The part that was busy for most of the wall time, if there is one; else all waited."""
        part, busy = max(
            ((part, cpu / self.wall_s) for part, cpu in self.cpu_s.items()),
            key=lambda item: item[1],
        )
        total = sum(self.cpu_s.values()) / self.wall_s
        if busy >= BUSY:
            return f"the {part}: {busy:.0%} of a core"
        return f"waiting: all parts together compute for {total:.0%} of a core"


BUSY = 0.6
"""A part that computes for this share of the wall time is called the limit."""


def milliseconds(seconds: float) -> str:
    """Seconds as a whole or small number of milliseconds."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 20 else f"{value:.1f} ms"
