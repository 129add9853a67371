"""The findings of a part of the GPU benchmark, saved after every figure.

A part may be killed at its time limit: its file then holds everything measured before. A goal is
written before it is measured: one that was never reached is reported as not known.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | int | float | None
"""`None`: not known."""


@dataclass
class Goal:
    """A figure with an upper or a lower bound; with neither it only informs."""

    name: str
    value: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; `None` without a bound or a value. NaN meets no goal."""
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass
class Part:
    """The findings of one part, saved in `file`."""

    file: Path | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expect(self, *goals: Goal) -> None:
        """Write goals before they are measured."""
        self.goals += goals
        self.save()

    def measured(self, name: str, value: float | None, note: str = "") -> None:
        """Fill in a goal that was written before."""
        goal = next(goal for goal in self.goals if goal.name == name)
        goal.value, goal.note = value, note or goal.note
        self.save()

    def row(self, table: str, **cells: Cell) -> None:
        """Add a row to a table; its keys are the columns, with `_` for a space."""
        self.tables.setdefault(table, []).append(cells)
        self.save()

    def note(self, text: str) -> None:
        """Add a note."""
        self.notes.append(text)
        self.save()

    def save(self) -> None:
        """Write the file."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        data = {name: value for name, value in asdict(self).items() if name != "file"}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(data, indent=1), encoding="utf-8")
        os.replace(partial, self.file)


def read_part(data: Mapping[str, Any]) -> Part:
    """Read a saved part."""
    return Part(
        machine=data["machine"],
        goals=[Goal(**goal) for goal in data["goals"]],
        tables=data["tables"],
        notes=data["notes"],
    )


def run_part(
    name: str, run: Callable[[Part, Path, bool], None], arguments: Sequence[str] | None = None
) -> None:
    """Run the command line of a part: `run` gets the findings, a folder, and `--small`."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on whatever is there")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of the findings")
    given = parser.parse_args(arguments)
    # At its limit the part gets SIGTERM: end by way of the context managers, which end the service.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    part, directory = Part(given.out.absolute()), given.out.absolute().with_suffix("")
    directory.mkdir(parents=True, exist_ok=True)
    part.save()
    run(part, directory, given.small)
