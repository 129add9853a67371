"""The report of a GPU run: one JSON and one Markdown file, even when parts failed.

    python -m gpu.report --workdir DIR --stem benchmarks/results/gpu-2026-11-26 [--small]

`--workdir` holds `parts.tsv`, a line for each part (module, limit in seconds, and once it has ended
its exit status and its seconds), and for each part the JSON of its findings and its log. The report
is rewritten after every part.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu.part import Cell, Goal, Part, read_part
from service.machine import sentence
from service.report import markdown_table, today, write

NOT_KNOWN = "not known"
LOG_LINES = 12
TIMED_OUT = (124, 128 + 9, 128 + 15)
"""Exit statuses of `timeout`: at the limit, and when the part had to be killed."""


@dataclass(frozen=True)
class Outcome:
    """A part's end. `status` is `None` before that, `part` when nothing was found."""

    module: str
    limit_s: float
    status: int | None
    seconds: float | None
    part: Part | None
    log: str

    @property
    def name(self) -> str:
        """Name of the part."""
        return self.module.removeprefix("gpu.")

    @property
    def said(self) -> str:
        """What became of the part, in words."""
        if self.status is None:
            return "not run"
        if self.status in TIMED_OUT:
            return "stopped at its limit"
        return "done" if self.status == 0 else f"failed (status {self.status})"


def read_outcomes(workdir: Path) -> list[Outcome]:
    """Read all planned parts in order."""
    return [
        read_outcome(workdir, line.split("\t"))
        for line in (workdir / "parts.tsv").read_text().splitlines()
    ]


def read_outcome(workdir: Path, cells: Sequence[str]) -> Outcome:
    """Read one part."""
    module, limit, status, seconds = (*cells, "", "")[:4]
    file, log = workdir / f"{module}.json", workdir / f"{module}.log"
    return Outcome(
        module,
        float(limit),
        int(status) if status else None,
        float(seconds) if seconds else None,
        read_part(json.loads(file.read_text("utf-8"))) if file.is_file() else None,
        log.read_text("utf-8", errors="replace") if log.is_file() else "",
    )


def markdown(outcomes: Sequence[Outcome], *, small: bool, total_s: float | None) -> str:
    """Return the report as Markdown."""
    machine = machine_of(outcomes)
    card = machine.get("card")
    title = "The trainer on a GPU" + (", small sizes" if small else "")
    lines = [f"# {title}, {today()}", "", f"Card: {card_sentence(machine)}."]
    lines.append(
        f"Machine: {sentence(machine)}." if "packages" in machine else f"Machine: {NOT_KNOWN}."
    )
    lines.append(
        f"Command: `benchmarks/gpu/run.sh{' --small' if small else ''}`; "
        f"{shown(total_s)} s in all. A figure that could not be measured is {NOT_KNOWN}."
    )
    if small or card is None:
        lines.append(
            "Nothing here is about speed or memory on a GPU; it shows that the parts work."
        )
    lines += [
        "",
        *markdown_table(
            ("part", "", "seconds", "limit"),
            [(o.name, o.said, shown(o.seconds), f"{o.limit_s:.0f}") for o in outcomes],
        ),
    ]
    goals = [(o.name, goal) for o in outcomes if o.part for goal in o.part.goals]
    if goals:
        lines += [
            "",
            "## Goals",
            "",
            *markdown_table(
                ("part", "figure", "measured", "goal", "", "note"),
                [
                    (name, goal.name, shown(goal.value), asked(goal), verdict(goal), goal.note)
                    for name, goal in goals
                ],
            ),
        ]
    for outcome in outcomes:
        lines += section(outcome)
    return "\n".join(lines) + "\n"


def section(outcome: Outcome) -> list[str]:
    """Return a part's notes and tables, and the end of its log where it failed."""
    lines = ["", f"## {outcome.name}", ""]
    if outcome.part is None:
        lines.append(
            "It has left no findings." if outcome.status is not None else "It was not run."
        )
    else:
        lines += outcome.part.notes
        for title, rows in outcome.part.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines += [
                "",
                f"{title}:",
                "",
                *markdown_table(
                    [column.replace("_", " ") for column in columns],
                    [[shown(row.get(column)) for column in columns] for row in rows],
                ),
            ]
    if outcome.status not in (None, 0):
        last = outcome.log.rstrip().splitlines()[-LOG_LINES:] or ["(it has written nothing)"]
        lines += ["", f"It {outcome.said}; the last lines it wrote:", "", "```", *last, "```"]
    return lines


def as_json(outcomes: Sequence[Outcome], *, small: bool, total_s: float | None) -> dict[str, Any]:
    """Return the report as JSON; numbers that are not known are null."""
    return {
        "date": today(),
        "small": small,
        "seconds": total_s,
        "machine": machine_of(outcomes),
        "parts": [
            {
                "name": o.name,
                "status": o.said,
                "exit": o.status,
                "seconds": o.seconds,
                "limit_s": o.limit_s,
                "goals": [asdict(goal) | {"met": goal.met} for goal in o.part.goals]
                if o.part
                else None,
                "tables": o.part.tables if o.part else None,
                "notes": o.part.notes if o.part else None,
                "log_end": o.log.splitlines()[-LOG_LINES:] if o.status not in (None, 0) else [],
            }
            for o in outcomes
        ],
    }


def machine_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the machine as the environment part describes it; empty without that part."""
    return next((o.part.machine for o in outcomes if o.part and o.part.machine), {})


def card_sentence(machine: Mapping[str, Any]) -> str:
    """Return the GPU in words."""
    if "card" not in machine:
        return NOT_KNOWN
    if machine["card"] is None:
        return "none, run on the CPU"
    return (
        f"{machine['card']}, {machine['card_memory_gib']} GiB, "
        f"compute capability {machine['capability']}, "
        f"CUDA {machine['cuda']}, driver {machine['driver'] or NOT_KNOWN}"
    )


def shown(value: Cell) -> str:
    """Format a cell: numbers with their significant digits."""
    if value is None:
        return NOT_KNOWN
    if isinstance(value, float):
        return (
            f"{value:.1e}"
            if 0 < abs(value) < 1e-3
            else f"{value:.3f}"
            if abs(value) < 100
            else f"{value:.0f}"
        )
    return str(value)


def asked(goal: Goal) -> str:
    """Return a goal in words."""
    bounds = [
        f"≤ {goal.at_most:g}" if goal.at_most is not None else "",
        f"≥ {goal.at_least:g}" if goal.at_least is not None else "",
    ]
    return ", ".join(bound for bound in bounds if bound)


def verdict(goal: Goal) -> str:
    """Return whether a goal is met, in words."""
    if goal.at_most is None and goal.at_least is None:
        return ""
    return {True: "met", False: "**missed**", None: NOT_KNOWN}[goal.met]


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m gpu.report")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stem", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, help="of the whole run so far")
    given = parser.parse_args()
    outcomes = read_outcomes(given.workdir)
    options: dict[str, Any] = {"small": given.small, "total_s": given.seconds}
    write(given.stem, markdown(outcomes, **options), as_json(outcomes, **options))


if __name__ == "__main__":
    main()
