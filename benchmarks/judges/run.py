"""The service against real servers: what doctor says of each, and what inducing and scoring come to.

    python -m judges.run [--only NAME]

Prints a table and writes ``benchmarks/results/judges-<date>.{md,json}``; with ``--only`` it writes to ``build/judges/``.
Ends with 1 where something is not as it should be. A server that is not installed or does not start is a row.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from markscheme_train.demo.model import ensure_model
from rich.console import Console

from judges.mock import mocking
from judges.servers import MODEL, SERVERS, NotRunning, Server, Trial, running
from judges.trial import Outcome, carry_out
from service import processes
from service.machine import describe, sentence
from service.report import markdown_table, today, write

COLUMNS = ("server", "model", "json_schema (doctor)", "doctor", "learnt", "induce", "right", "wrong", "over-long",
           "one more", "calls", "seconds", "json_schema afterwards", "as it should be")


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
        return self.outcome.faults(self.trial) if self.outcome and self.trial else []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m judges.run")
    parser.add_argument("--only", action="append", choices=SERVERS, metavar="NAME",
                        help=f"one server; may be repeated. {', '.join(SERVERS)}")
    only = parser.parse_args().only
    console = Console(width=200)
    processes.prepare()
    model = ensure_model(Path("build/smollm2")).absolute()
    machine = describe()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="markscheme-judges-") as scratch:
        for name in only or SERVERS:
            with mocking() as url:
                for row in try_server(SERVERS[name], Path(scratch) / name, model, url):
                    rows.append(row)
                    show(row, console)
    markdown = "\n".join([
        f"# Real servers as judges, {today()}", "", f"Machine: {sentence(machine)}.",
        "Command: `make test-judges`. Each server in its own virtual environment; `markscheme serve` with SQLite, asked "
        "through a tap that counts the calls. SmolLM2-135M is far too small to judge: what is tried is whether every "
        "rollout gets a reward or the right reason. “Over-long”: a rollout of "
        "160,000 characters, of which the judge is shown the last 32,000. “One more”: a short rollout after it.",
        "", *markdown_table(COLUMNS, [cells(row) for row in rows]), "", "## What doctor said", "",
        *(line for row in rows if row.outcome and row.trial for line in _doctor(row, row.outcome, row.trial))]) + "\n"
    stem = Path("build/judges/judges-partial") if only else Path(f"benchmarks/results/judges-{today()}")
    for path in write(stem, markdown, {"date": today(), "machine": machine, "rows": [asdict(row) for row in rows]}):
        console.print(f"written: {path}")
    if any(row.faults for row in rows):
        sys.exit(1)


def try_server(server: Server, room: Path, model: Path, upstream: str | None = None) -> Iterator[Row]:
    """A row for each of its trials, and for those of the proxies before it."""
    room.mkdir(parents=True)
    (room / MODEL).symlink_to(model)
    version = ""
    try:
        version = server.version()
        with running(server, room, upstream) as url:
            for number, trial in enumerate(server.trials):
                yield Row(server.name, version, trial, carry_out(trial, url, room / f"trial-{number}"))
            for number, proxy in enumerate(server.proxies):
                yield from try_server(proxy, room / f"proxy-{number}", model, url)
    except NotRunning as error:
        yield Row(server.name, version, None, None, str(error))


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    server = f"{row.server} {row.version}".strip()
    if row.outcome is None or row.trial is None:
        return (server, "", f"not tried: {_plain(row.why_not)}", *[""] * (len(COLUMNS) - 3))
    outcome = row.outcome
    after = outcome.form_after or "no call"
    return (server, f"{row.trial.model}: {row.trial.what}", schema_verdict(outcome), doctor_verdict(outcome),
            "; ".join(outcome.learnt) or "-", outcome.induce,
            *(outcome.scores.get(name, "nothing") for name in ("right", "wrong", "long", "after")),
            " + ".join(str(count) for count in outcome.calls.values()), f"{outcome.seconds:.0f}",
            "yes" if after == "json_schema" else f"no ({after})", "; ".join(row.faults) or "yes")


def schema_verdict(outcome: Outcome) -> str:
    """Enforced, accepted but ignored, or refused, in doctor's words."""
    said = [line.partition("json_schema: ")[2].partition(";")[0] for line in outcome.doctor if "json_schema: " in line]
    return ", ".join(dict.fromkeys(said)) or "-"


def doctor_verdict(outcome: Outcome) -> str:
    """The first thing that failed, else ok."""
    failed = [line.partition("FAILED")[2].strip() for line in outcome.doctor if line.strip().startswith("FAILED")]
    return _plain(failed[0].partition("): ")[2] or failed[0]) if failed else "ok"


def show(row: Row, console: Console) -> None:
    """Print a row as it comes in."""
    for column, cell in zip(COLUMNS, cells(row), strict=True):
        if cell:
            console.print(f"{column:>24}  {cell}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _doctor(row: Row, outcome: Outcome, trial: Trial) -> list[str]:
    return [f"{row.server} {row.version}, {trial.model} ({trial.what}), {outcome.doctor_s:.0f} s:", "", "```",
            *outcome.doctor, "```", ""]


def _plain(words: str) -> str:
    return " ".join(words.replace("|", "/").split())


if __name__ == "__main__":
    main()
