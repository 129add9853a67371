"""Rows as a table on the terminal, and as dated Markdown and JSON files."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from service.machine import sentence
from service.results_table import Row, TimeSpent

_COLOURS = {True: "green", False: "red", None: "dim"}


def today() -> str:
    """Return the date that names a result file."""
    return datetime.now(UTC).date().isoformat()


def show(rows: Sequence[Row], console: Console) -> None:
    """Print rows as they arrive."""
    table = Table(show_lines=False)
    for column in ("figure", "load", "goal", "measured", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.figure, row.work, row.goal, row.measured, f"[{_COLOURS[row.met]}]{row.verdict}[/]"
        )
    console.print(table)


def save(
    stem: Path,
    *,
    title: str,
    notes: Sequence[str],
    rows: Sequence[Row],
    spent: Sequence[TimeSpent],
    machine: dict[str, Any],
) -> list[Path]:
    """Write `stem`.md and `stem`.json; return the paths."""
    lines = [
        f"# {title}, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        *notes,
        "",
        *markdown_table(
            ("figure", "load", "goal", "measured", ""),
            [(r.figure, r.work, r.goal, r.measured, r.verdict) for r in rows],
        ),
    ]
    if spent:
        parts = list(spent[0].cpu_s)
        lines += [
            "",
            "## Where the time goes",
            "",
            "CPU seconds per 1,000 verdicts by part, beside the wall seconds, and what the limit "
            "was. The driver holds the client: what a trainer spends. Waiting is for the judge, "
            "disks, or cores that others use.",
            "",
            *markdown_table(
                ("figure", "load", "wall", *parts, "the limit"), [_spent_line(s) for s in spent]
            ),
        ]
    data = {
        "title": title,
        "date": today(),
        "machine": machine,
        "notes": list(notes),
        "rows": [asdict(row) for row in rows],
        "spent": [asdict(s) | {"limit": s.limit} for s in spent],
    }
    return write(stem, "\n".join(lines) + "\n", data)


def write(stem: Path, markdown: str, data: dict[str, Any]) -> list[Path]:
    """Write the two files of a result."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("md", "json")]
    paths[0].write_text(markdown, encoding="utf-8")
    paths[1].write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table, line by line."""
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
    ]


def _spent_line(spent: TimeSpent) -> tuple[object, ...]:
    thousands = spent.verdicts / 1000
    numbers = (spent.wall_s, *spent.cpu_s.values())
    return (
        spent.figure,
        spent.work,
        *(f"{seconds / thousands:.3f}" for seconds in numbers),
        spent.limit,
    )
