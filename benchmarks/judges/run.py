"""The service against real servers: what doctor reports, and how it induces and scores.

    python -m judges.run [--only NAME]

Prints a table and writes `benchmarks/results/judges-<date>.{md,json}`; a run of some servers only
writes to `build/judges/`. Exits with 1 where something is wrong. A server that is not installed or
does not start is a row that says why.
"""

import argparse
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from judges.mock import mocking
from judges.servers import SERVERS, NotRunning, Server, Trial, running
from judges.trial import (
    AFTER_S,
    CALL_S,
    DOCTOR_S,
    INDUCE_S,
    LONG,
    SCORE_S,
    Outcome,
    carry_out,
)
from markscheme import MarkschemeError
from service import processes
from service.machine import describe, sentence
from service.report import markdown_table, today, write

COLUMNS = (
    "server",
    "model",
    "json_schema (doctor)",
    "doctor",
    "learnt",
    "induce",
    "right",
    "wrong",
    "over-long",
    "one more",
    "calls",
    "seconds",
    "json_schema afterwards",
    "as it should be",
)
NOTES = (
    "Command: `make test-judges`. Each server in its own virtual environment, on loopback; a real "
    "`markscheme serve` with SQLite for each row, through a tap that counts its calls.",
    "SmolLM2-135M is far too small to judge: what is tried is that every rollout gets a reward or "
    "the right reason, in time. “right” and “wrong” are short rollouts; “over-long” has "
    f"{len(LONG):,} characters, of which the judge is shown the last 32,000; “one more” is a "
    "short rollout after these. Calls: of doctor, the induction, the batch of three, and the one "
    f"more. One call may take {CALL_S:.0f} s; doctor {DOCTOR_S:.0f} s, the induction "
    f"{INDUCE_S:.0f} s, the batch {SCORE_S:.0f} s, the one more {AFTER_S:.0f} s.",
)


@dataclass(frozen=True)
class Row:
    """A trial, or why there was none."""

    server: str
    version: str
    trial: Trial | None
    outcome: Outcome | None
    why_not: str = ""

    @property
    def faults(self) -> list[str]:
        """Return what is wrong. A missing server is not a fault of the service."""
        if self.trial is None:
            return []
        return [self.why_not] if self.outcome is None else self.outcome.faults(self.trial)


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(prog="python -m judges.run")
    parser.add_argument(
        "--only",
        action="append",
        choices=SERVERS,
        metavar="NAME",
        help=f"one server; may be repeated. {', '.join(SERVERS)}",
    )
    names: list[str] = parser.parse_args().only or [*SERVERS]
    console = Console(width=200)
    processes.prepare()
    machine = describe()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="markscheme-judges-") as scratch:
        workdir = Path(scratch)
        for name in names:
            with ExitStack() as stack:
                url = stack.enter_context(mocking())
                found = stack.enter_context(closing(try_server(SERVERS[name], workdir / name, url)))
                for row in found:
                    rows.append(row)
                    show(row, console)
    complete = set(names) == set(SERVERS)
    stem = Path(f"benchmarks/results/judges-{today()}" if complete else "build/judges/partial")
    data = {"date": today(), "machine": machine, "rows": [asdict(row) for row in rows]}
    for path in write(stem, report(rows, sentence(machine)), data):
        console.print(f"written: {path}")
    if any(row.faults for row in rows):
        sys.exit(1)


def report(rows: Sequence[Row], machine: str) -> str:
    """Return the Markdown file."""
    table = markdown_table(COLUMNS, [cells(row) for row in rows])
    said = [line for row in rows for line in details(row)]
    head = [f"# Real servers as judges, {today()}", "", f"Machine: {machine}.", *NOTES, ""]
    said_head = ["", "## What doctor said, and the refusals word for word", ""]
    return "\n".join([*head, *table, *said_head, *said]) + "\n"


def try_server(server: Server, workdir: Path, upstream: str) -> Generator[Row]:
    """Return a row for each trial of a server, and for those of the proxies in front of it."""
    workdir.mkdir(parents=True)
    version = ""
    try:
        version = server.version()
        jobs: tuple[Trial | Server, ...] = (*server.trials, *server.proxies)
        numbered = list(enumerate(jobs))
        for part in [[one] for one in numbered] if server.fresh else [numbered]:
            with running(server, workdir, upstream) as url:
                for number, job in part:
                    if isinstance(job, Trial):
                        yield _tried(server, version, job, url, workdir / str(number))
                    else:
                        yield from try_server(job, workdir / str(number), url)
    except NotRunning as error:
        yield Row(server.name, version, None, None, str(error))


def _tried(server: Server, version: str, trial: Trial, url: str, workdir: Path) -> Row:
    try:
        return Row(server.name, version, trial, carry_out(trial, url, workdir))
    except (MarkschemeError, RuntimeError) as error:
        return Row(server.name, version, trial, None, f"{type(error).__name__}: {error}")


def cells(row: Row) -> tuple[str, ...]:
    """Return one line of the table."""
    server = f"{row.server} {row.version}".strip()
    if row.outcome is None or row.trial is None:
        model = f"{row.trial.model}: {row.trial.what}" if row.trial else ""
        return (server, model, f"not tried: {_plain(row.why_not)}", *[""] * (len(COLUMNS) - 3))
    outcome = row.outcome
    after = outcome.form_after or "no call"
    return (
        server,
        f"{row.trial.model}: {row.trial.what}",
        schema_verdict(outcome),
        doctor_verdict(outcome),
        "; ".join(outcome.learnt) or "-",
        _plain(outcome.induce.partition(":")[0]),
        *(outcome.scores.get(name, "nothing") for name in ("right", "wrong", "long", "after")),
        " + ".join(str(count) for count in outcome.calls.values()),
        f"{outcome.seconds:.0f}",
        "yes" if after == "json_schema" else f"no ({after})",
        "; ".join(row.faults) or "yes",
    )


def schema_verdict(outcome: Outcome) -> str:
    """Return enforced, accepted but ignored, or refused, in doctor's words."""
    said = [
        line.partition("json_schema: ")[2].partition(";")[0]
        for line in outcome.doctor
        if "json_schema: " in line
    ]
    return ", ".join(dict.fromkeys(said)) or "-"


def doctor_verdict(outcome: Outcome) -> str:
    """Return the first check that failed, else ok."""
    failed = [
        line.partition("FAILED")[2].strip()
        for line in outcome.doctor
        if line.strip().startswith("FAILED")
    ]
    return _plain(failed[0].partition("): ")[2] or failed[0]) if failed else "ok"


def show(row: Row, console: Console) -> None:
    """Print a row as it arrives."""
    for column, cell in zip(COLUMNS, cells(row), strict=True):
        if cell:
            console.print(f"{column:>24}  {cell}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def details(row: Row) -> list[str]:
    """Return doctor's output, and one refusal of each kind as the server sent it."""
    if row.outcome is None or row.trial is None:
        return []
    refusals = [
        f"{said['status']} {' '.join(said['body'].split())}" for said in row.outcome.refusals
    ]
    return [
        f"{row.server} {row.version}, {row.trial.model} ({row.trial.what}), "
        f"{row.outcome.doctor_s:.0f} s:",
        "",
        "```",
        *row.outcome.doctor,
        *refusals,
        "```",
        "",
    ]


def _plain(words: str) -> str:
    return " ".join(words.replace("|", "/").split())


if __name__ == "__main__":
    main()
