"""Reading and importing a table of rubrics: time, rows a second, peak memory.

    python benchmarks/imports.py [--rows 100000] [--import-rows 100000] [--out benchmarks/results]

Writes the same rubrics (native format, four criteria, made-up words) as Parquet, JSON Lines, JSON
and CSV, reads each in a process of its own, then imports the Parquet file with `markscheme rubrics
import` into a fresh service (SQLite, one worker). Peak memory is the process's maximum resident
set. A process that only imports the reader stands beside them.
"""

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from service.machine import describe, sentence

PACKAGES = ("markscheme", "pyarrow", "datasets", "httpx", "pydantic", "sqlalchemy", "aiosqlite")
PEAK = (
    "import atexit, pathlib, sys; atexit.register(lambda: sys.stderr.write("
    "pathlib.Path('/proc/self/status').read_text())); "
)
"""Makes a process write its status, with its own peak memory, when it ends."""
COMMAND = (sys.executable, "-c", f"{PEAK}from markscheme.cli import main; main()")
READ = PEAK + (
    "import sys; from markscheme.data import open_source; "
    "print(sum(len(row.read()) for row in open_source(sys.argv[1]).rows()))"
)
NOTHING = f"{PEAK}import markscheme.data"
WORDS = ("amber", "birch", "cloud", "delta", "ember", "fjord", "grain", "heath", "inlet", "kelp")
WRITE_ROWS = 1000


@dataclass(frozen=True)
class Measurement:
    """One process: what it did to how many rows, its seconds and its peak memory in MiB."""

    what: str
    rows: int
    file_mib: float
    seconds: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds if self.seconds else 0.0


def rubrics(rows: int) -> Iterator[dict[str, Any]]:
    """Yield rubrics in the native format; every prompt is another."""
    draw = random.Random(7)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    for number in range(rows):
        yield {
            "schema_version": "markscheme.rubric.v1",
            "prompt": f"Question {number}: {words(60)}?",
            "criteria": [
                {"text": f"It says {words(12)}.", "points": draw.randint(1, 5)} for _ in range(4)
            ],
            "tags": ["benchmark"],
        }


def write_files(folder: Path, rows: int) -> dict[str, Path]:
    """Write the rubrics once in each kind of file."""
    files = {kind: folder / f"rubrics.{kind}" for kind in ("parquet", "jsonl", "json", "csv")}
    schema = pyarrow.Table.from_pylist(list(rubrics(2))).schema
    with (
        parquet.ParquetWriter(files["parquet"], schema) as table,
        files["jsonl"].open("w") as lines,
        files["json"].open("w") as array,
        files["csv"].open("w", newline="") as cells,
    ):
        sheet = csv.writer(cells)
        sheet.writerow(["prompt", "rubric"])
        batch = []
        for number, rubric in enumerate(rubrics(rows)):
            text = json.dumps(rubric)
            lines.write(text + "\n")
            array.write(("[" if number == 0 else ",\n") + text)
            sheet.writerow([rubric["prompt"], text])
            batch.append(rubric)
            if len(batch) == WRITE_ROWS:
                table.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch.clear()
        if batch:
            table.write_table(pyarrow.Table.from_pylist(batch, schema))
        array.write("]")
    return files


def measure(what: str, words: list[str], rows: int, file: Path | None) -> Measurement:
    """Run a process to its end and measure it. Raises `RuntimeError` if it fails."""
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    size = file.stat().st_size / 2**20 if file else 0.0
    return Measurement(what, rows, round(size, 1), round(seconds, 2), peak_mib(done.stderr))


@contextmanager
def service(home: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a service on a fresh SQLite database."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"MARKSCHEME_HOME": str(home)},
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0], process
    finally:
        process.terminate()
        process.communicate()


def peak_mib(status: str) -> float:
    """Return the peak memory that a process's status states."""
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def run(rows: int, import_rows: int) -> tuple[list[Measurement], float]:
    """Measure everything. Returns the measurements, and the service's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, rows)
        found = [measure("import of the module alone", [sys.executable, "-c", NOTHING], 0, None)]
        found += [
            measure(f"read .{kind}", [sys.executable, "-c", READ, str(file)], rows, file)
            for kind, file in files.items()
        ]
        file = files["parquet"]
        if import_rows != rows:
            (folder / "few").mkdir()
            file = write_files(folder / "few", import_rows)["parquet"]
        with service(folder / "home") as (url, process):
            words = [*COMMAND, "rubrics", "import", str(file), "--format", "native", "--url", url]
            found.append(measure("rubrics import .parquet", words, import_rows, file))
            found.append(measure("the same again", words, import_rows, file))
            peak = peak_mib(Path(f"/proc/{process.pid}/status").read_text())
    return found, peak


def main() -> None:
    """Measure, print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--import-rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe(PACKAGES)
    found, peak = run(options.rows, options.import_rows)
    lines = [
        "| what | rows | file, MiB | seconds | rows a second | peak memory, MiB |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {each.what} | {each.rows:,} | {each.file_mib} | {each.seconds} | {each.rate:,.0f} "
            f"| {each.peak_mib} |"
            for each in found
        ),
    ]
    table = Table(*(cell.strip() for cell in lines[0].strip("|").split("|")))
    for line in lines[2:]:
        table.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    console = Console()
    console.print(table)
    console.print(f"peak memory of the service: {peak} MiB")
    if options.out:
        name = f"imports-{datetime.now(UTC):%Y-%m-%d}"
        (options.out / f"{name}.md").write_text(
            "# Reading and importing a table of rubrics\n\n"
            f"`make bench-import`, {sentence(machine)}. One worker on SQLite; its peak memory was "
            f"{peak} MiB.\n\n" + "\n".join(lines) + "\n"
        )
        values = [asdict(each) for each in found]
        (options.out / f"{name}.json").write_text(
            json.dumps(
                {"machine": machine, "measurements": values, "service_peak_mib": peak}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
