"""``markscheme runs``, ``findings`` and ``open``: what became of a training run."""

import time
import webbrowser
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from markscheme.cli.output import (
    EPILOG,
    Json,
    Url,
    connect,
    reported_errors,
    screen,
    table_width,
    warn,
)
from markscheme.client import DEFAULT_URL, Client
from markscheme.errors import ConnectionFailed, ServiceUnavailable
from markscheme.run_text import STYLES, finding_counts, finding_line, run_url, sparkline
from markscheme.schema import Finding, RunDetail, RunSummary, display_step

WATCH_S = 5.0
"""Seconds between two looks at a run."""
OTHER_LINES = 12
"""Lines of the view without its findings."""
ENDED = ("finished", "stopped", "failed")
INTERRUPTED = 130
NO_RUNS = (
    "No run yet. A training makes one ('markscheme train CONFIG.yaml'), and so does "
    "'markscheme score FILE.jsonl --run NAME'."
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]

runs = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    epilog=EPILOG,
    help="List your team's runs, most recently active first, or watch one.",
)


@runs.callback()
def list_runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Runs to show.")] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List your team's runs, most recently active first, or watch one."""
    if context.invoked_subcommand is not None:
        return
    with reported_errors(), connect(url) as client:
        found = client.runs(limit=limit)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = screen()
    if not found.data:
        console.print(NO_RUNS, soft_wrap=True)
        return
    _print_runs(console, found.data)
    if found.has_more:
        console.print("there are more than are shown: raise --limit")


@runs.command("watch", epilog=EPILOG)
def watch(run_id: RunId, url: Url = DEFAULT_URL) -> None:
    """Show a run in the terminal until it ends: reward, teacher, findings.

    Ctrl-C ends the view, not the run. Without a terminal, prints a line whenever a step was scored.
    """
    console = screen()
    with reported_errors(), connect(url) as client:
        try:
            _watch(console, client, run_id)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def findings(run_id: RunId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show what is wrong with a run, alarms first.

    docs/runs.md has the rule of each finding.
    """
    with reported_errors(), connect(url) as client:
        found = client.run_findings(run_id)
        address = run_url(client.base_url, run_id)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = screen()
    console.print(_finding_lines(found.data) if found.data else "Nothing needs a look.")
    console.print(address, soft_wrap=True)


def open_run(
    run_id: RunId,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open it, or only print its address.")
    ] = True,
    url: Url = DEFAULT_URL,
) -> None:
    """Print the address of a run's page, and open it in a browser."""
    with reported_errors(), connect(url) as client:
        # A run that is not there is said here, not in the browser.
        address = run_url(client.base_url, client.run(run_id).id)
    typer.echo(address)
    if browser and not webbrowser.open(address):
        warn("there is no browser here: open the address in one")


def _print_runs(console: Console, found: Sequence[RunSummary]) -> None:
    """Print a table if it fits; else two lines a run."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "reward", "first", "now", "cost", "findings", "scored"):
        table.add_column(
            name, no_wrap=True, justify="right" if name in ("first", "now", "cost") else "left"
        )
    for run in found:
        table.add_row(run.id, *_cells(run))
    if table_width(console, table) <= console.width:
        console.print(table)
        return
    for run in found:
        state, step, curve, first, now, cost, counts, scored = _cells(run)
        parts = [state, f"step {step}", f"reward {first} → {now}", cost, counts, scored]
        console.print(run.id, soft_wrap=True)
        console.print(Padding("  ".join(part for part in parts if part), (0, 0, 0, 4)))
        if any(value is not None for value in run.curve):
            console.print(Padding(curve, (0, 0, 0, 4)))


def _cells(run: RunSummary) -> tuple[str, ...]:
    return (
        _state(run),
        _progress(run),
        sparkline(run.curve),
        _number(run.reward_first),
        _number(run.reward_now),
        f"${run.cost_usd:,.2f}" + ("+" if run.unpriced_calls else ""),
        finding_counts(run.findings),
        _ago(run.last_scored_at),
    )


def _watch(console: Console, client: Client, run_id: str) -> None:
    address = run_url(client.base_url, run_id)
    looks = _looks(client, run_id)
    if console.is_terminal:
        room = max(1, (console.height - OTHER_LINES) // 2)
        with Live(console=console, auto_refresh=False) as live:
            for run, found, trouble in looks:
                live.update(_view(run, found, room, address, trouble), refresh=True)
        return
    shown: int | None = None
    for run, found, trouble in looks:
        if trouble:
            warn(trouble)
        elif run.state in ENDED or run.last_step != shown:
            console.print(_line(run), soft_wrap=True)
            shown = run.last_step
        if run.state in ENDED:
            console.print(_finding_lines(found), address, sep="\n", soft_wrap=True)


def _looks(client: Client, run_id: str) -> Iterator[tuple[RunDetail, list[Finding], str]]:
    """Yield a run, its findings and what is in the way, every `WATCH_S` seconds until its end."""
    run, found = client.run(run_id), client.run_findings(run_id).data
    yield run, found, ""
    while run.state not in ENDED:
        time.sleep(WATCH_S)
        trouble = ""
        try:
            run, found = client.run(run_id), client.run_findings(run_id).data
        except (ConnectionFailed, ServiceUnavailable) as error:
            trouble = f"no answer at {datetime.now(UTC):%H:%M:%S} UTC: {error}"
        yield run, found, trouble


def _view(
    run: RunDetail, found: Sequence[Finding], room: int, address: str, trouble: str
) -> RenderableType:
    """Return the view of a run, with at most `room` findings."""
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_column(no_wrap=True)
    figures.add_column()
    unknown = f"{run.unscored:,} of {run.rollouts:,} rollouts"
    rows = {
        "state": f"{_state(run)}  {_ago(run.last_scored_at)}",
        "step": _progress(run),
        "reward": f"{_number(run.reward_first)} → {_number(run.reward_now)}  "
        f"{sparkline(run.curve)}",
        "teacher": _number(run.teacher) if run.teacher is not None else "not asked",
        "not known": unknown + (f" ({_reasons(run.reasons)})" if run.reasons else ""),
        "cost": f"${run.cost_usd:,.2f}, saved ${run.saved_usd:,.2f}"
        + (f"; {run.unpriced_calls:,} calls without a price" if run.unpriced_calls else ""),
    }
    for name, value in rows.items():
        figures.add_row(name, Text(value))
    return Group(
        Text(run.id, style="bold", overflow="fold"),
        figures,
        _finding_lines(found[:room]),
        *(
            [Text(f"{len(found) - room} more: markscheme findings {run.id}")]
            if found[room:]
            else []
        ),
        Text(address, overflow="fold"),
        *([Text(trouble, style="yellow")] if trouble else []),
    )


def _finding_lines(found: Sequence[Finding]) -> Text:
    return Text("\n").join(Text(finding_line(each), STYLES[each.level]) for each in found)


def _line(run: RunDetail) -> str:
    teacher = f"  teacher {_number(run.teacher)}" if run.teacher is not None else ""
    counts = finding_counts(run.findings)
    return (
        f"step {_progress(run)}  reward {_number(run.reward_now)}{teacher}  "
        f"not known {run.unscored:,}/{run.rollouts:,}  {_state(run)}"
        + (f"  findings {counts}" if counts else "")
    )


def _state(run: RunSummary) -> str:
    return run.state + (f": {run.reason}" if run.reason and run.state in ENDED else "")


def _progress(run: RunSummary) -> str:
    if run.last_step is None:
        return "–"
    step = display_step(run.last_step, run.first_step or 0)
    return f"{step:,}" + (f" of {run.steps:,}" if run.steps is not None else "")


def _reasons(reasons: dict[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda each: -each[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ago(when: datetime | None) -> str:
    """Return how long ago something was, in one unit."""
    if when is None:
        return "never"
    seconds = max(0.0, (datetime.now(UTC) - when).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
