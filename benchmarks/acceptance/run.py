"""Run the checks of the service and the trainer, and write the table ``docs/reliability.md``.

    python -m acceptance.run [--only N[,N]] [--list]

Each check consists of commands, mostly tests. Rows of checks that were not run this time keep their
results and dates, which are stored in ``benchmarks/results/acceptance.json``. The exit status is 1
if a check that was run failed.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from acceptance.checks import CHECKS, Check
from acceptance.commands import LAST_FAILURE, Command, Outcome, run, total
from service.machine import describe, sentence
from service.report import markdown_table, today

ROWS = Path("benchmarks/results/acceptance.json")
TABLE = Path("docs/reliability.md")
UNDER_WAY = Path("build/acceptance.json")
"""What passed of the check under way, so that an interrupted run need not do it again."""
SHOWN, PART, NOT_APPLICABLE, FAILED, NOT_RUN = (
    "shown",
    "part",
    "not applicable",
    "failed",
    "not run yet",
)
COLUMNS = ("check", "holds", "status", "command", "figure", "date")
INTRODUCTION = """\
# Reliability: 58 checks, and what shows them

Written by `make acceptance`: do not edit. `make acceptance CHECKS=4,5` runs these again \
and keeps the other rows with
their dates; without `CHECKS` all are run (slow, about two and a half hours on two cores).

- shown: every command of the check passed. part: it passed and shows less than the check \
asks for; the row says
  what is missing. not applicable: there is nothing to check, and why. failed: a command failed \
or took too long.
- The commands are run in the project's root. The figure is how many tests passed \
and in what time, and what the tests
  measured.
"""


@dataclass(frozen=True)
class Row:
    """The result of running one check."""

    status: str
    figure: str
    date: str


def main() -> None:
    """Run the chosen checks and write the table, or list them."""
    parser = argparse.ArgumentParser(prog="python -m acceptance.run")
    parser.add_argument(
        "--only", type=numbers, metavar="N[,N]", help="run these checks; the other rows stay"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the checks and their commands and run nothing"
    )
    arguments = parser.parse_args()
    console = Console(width=160, highlight=False)
    chosen: list[int] = arguments.only or [*CHECKS]
    if arguments.list:
        for number in chosen:
            console.print(f"{number:>2}  {CHECKS[number].holds}", markup=False)
            for command in CHECKS[number].commands:
                console.print(f"    {command.words}", markup=False, soft_wrap=True)
        return
    # End by way of `finally`, which ends the command that is running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = False
    rows = load()
    for number in chosen:
        check = CHECKS[number]
        if not check.commands:
            continue
        console.print(f"{number:>2}  {check.holds}", markup=False)
        outcomes = []
        for command in check.commands:
            outcomes.append(outcome := finish(command))
            if len(check.commands) > 1:
                console.print(f"    {command.words}: {said(outcome)}", markup=False)
            if outcome.fault:
                console.print(f"    what it said: {LAST_FAILURE}", markup=False)
                break
        row = judge(check, outcomes)
        console.print(f"    {row.status}: {row.figure}", markup=False)
        failed = failed or row.status == FAILED
        rows = load() | {number: row}
        save(rows)
        UNDER_WAY.unlink(missing_ok=True)
    console.print(
        f"written: {TABLE} "
        f"({', '.join(f'{count} {status}' for status, count in counts(rows).items())})"
    )
    sys.exit(int(failed))


def numbers(words: str) -> list[int]:
    """Parse the numbers of ``--only``. Raises ``ArgumentTypeError`` for unknown checks."""
    try:
        found = [int(word) for word in words.split(",")]
    except ValueError:
        found = []
    if not found or not set(found) <= set(CHECKS):
        raise argparse.ArgumentTypeError(f"numbers from 1 to {max(CHECKS)}, as in 4,5: {words!r}")
    return found


def finish(command: Command) -> Outcome:
    """Run a command, unless it passed on this commit before its check was interrupted."""
    key = f"{commit()} {command.words}"
    stored = json.loads(UNDER_WAY.read_text("utf-8")) if UNDER_WAY.exists() else {}
    if key in stored:
        return Outcome(**stored[key])
    outcome = run(command)
    if not outcome.fault:
        UNDER_WAY.parent.mkdir(exist_ok=True)
        UNDER_WAY.write_text(json.dumps(stored | {key: asdict(outcome)}), "utf-8")
    return outcome


def commit() -> str:
    """Return the commit of the project, or the time where other files than ours differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    others = (":/", f":(top,exclude){ROWS}", f":(top,exclude){TABLE}")
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *others], check=False)
    if changed.returncode != 0:
        return str(time.time())
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


def said(outcome: Outcome) -> str:
    """Return an outcome in words."""
    counts = f"{outcome.passed} passed" + (f", {outcome.failed} failed" if outcome.failed else "")
    fault = f" ({outcome.fault})" if outcome.fault else ""
    return f"{counts} in {outcome.seconds:.0f} s{fault}"


def judge(check: Check, outcomes: Sequence[Outcome]) -> Row:
    """Return the row of a check from the outcomes of its commands."""
    outcome = total(outcomes)
    status = FAILED if outcome.fault else PART if check.part or outcome.skipped else SHOWN
    words = [said(outcome), *outcome.figures]
    words += [f"skipped: {why}" for why in outcome.skipped]
    return Row(status, "; ".join(words), today())


def row_of(check: Check, rows: Mapping[int, Row]) -> Row:
    """Return the row of the check's last run, or one that says that there was none."""
    if check.not_applicable:
        return Row(NOT_APPLICABLE, check.not_applicable, "")
    return rows.get(check.number, Row(NOT_RUN, "", ""))


def counts(rows: Mapping[int, Row]) -> dict[str, int]:
    """Count the checks by status."""
    found = [row_of(check, rows).status for check in CHECKS.values()]
    return {
        status: found.count(status)
        for status in (SHOWN, PART, NOT_APPLICABLE, FAILED, NOT_RUN)
        if status in found
    }


def load() -> dict[int, Row]:
    """Return the rows of earlier runs, except for checks whose commands have changed since."""
    if not ROWS.exists():
        return {}
    kept = json.loads(ROWS.read_text("utf-8"))["rows"]
    return {
        number: Row(row["status"], row["figure"], row["date"])
        for number, check in CHECKS.items()
        if (row := kept.get(str(number))) is not None
        and row["commands"] == [c.words for c in check.commands]
    }


def save(rows: Mapping[int, Row]) -> None:
    """Write both files."""
    machine = describe()
    kept = {
        str(number): asdict(row) | {"commands": [c.words for c in CHECKS[number].commands]}
        for number, row in sorted(rows.items())
    }
    ROWS.write_text(
        json.dumps({"machine": machine, "rows": kept}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    TABLE.write_text(table(rows, sentence(machine)), "utf-8")


def table(rows: Mapping[int, Row], machine: str) -> str:
    """Return the content of the Markdown file."""
    parts = [
        INTRODUCTION,
        f"Last run on: {machine}.\n",
        f"Now: {', '.join(f'{count} {status}' for status, count in counts(rows).items())}.\n",
    ]
    for area in dict.fromkeys(check.area for check in CHECKS.values()):
        lines = [
            cells(check, row_of(check, rows)) for check in CHECKS.values() if check.area == area
        ]
        parts.append("\n".join([f"## {area}", "", *markdown_table(COLUMNS, lines), ""]))
    return "\n".join(parts)


def cells(check: Check, row: Row) -> tuple[str, ...]:
    """Return one line of the table."""
    status = (
        f"{row.status}: {check.part}"
        if check.part and row.status in (PART, NOT_RUN)
        else row.status
    )
    commands = "<br>".join(f"`{command.words}`" for command in check.commands)
    return tuple(
        cell.replace("|", "\\|")
        for cell in (str(check.number), check.holds, status, commands, row.figure, row.date)
    )


if __name__ == "__main__":
    main()
