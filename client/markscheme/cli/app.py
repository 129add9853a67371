"""The ``markscheme`` command: the client's commands, and those of the installed extras.

The server and the trainer register their commands under the entry point group
``markscheme.commands``; without their extra the command says how to install it.
"""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from markscheme import __version__
from markscheme.cli.induce import induce
from markscheme.cli.output import EPILOG
from markscheme.cli.replay import replay
from markscheme.cli.report import report
from markscheme.cli.rubrics import rubrics
from markscheme.cli.runs import findings, open_run, runs
from markscheme.cli.score import read_groups, score
from markscheme.cli.teach import teach
from markscheme.cli.usage import usage

__all__ = ["app", "main", "read_groups"]

ENTRY_POINTS = "markscheme.commands"


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """A line of ``markscheme --help``. ``extra``: what to install for it; empty for the SDK's."""

    section: str
    summary: str
    extra: str = ""


COMMANDS = {
    "serve": CommandInfo("Run", "Start the rubric service", "server"),
    "score": CommandInfo("Run", "Score the rollouts of a file"),
    "teach": CommandInfo("Run", "Fill the teacher bank for a file of prompts"),
    "induce": CommandInfo("Run", "Create rubrics before a training"),
    "train": CommandInfo("Run", "Train a model on rubric rewards", "train"),
    "demo": CommandInfo("Run", "Train a small model here and report", "train"),
    "demo-control": CommandInfo("Run", "Repeat the demo with shuffled rewards", "train"),
    "doctor": CommandInfo("Look", "Check judge, database and cost", "server"),
    "runs": CommandInfo("Look", "List training runs, or watch one"),
    "findings": CommandInfo("Look", "Show what is wrong with a run"),
    "open": CommandInfo("Look", "Open a run's page in the browser"),
    "report": CommandInfo("Look", "Write a run's page to one HTML file"),
    "replay": CommandInfo("Look", "Score a run's rollouts again and compare"),
    "rubrics": CommandInfo("Look", "Search, trace, import and export rubrics"),
    "usage": CommandInfo("Look", "Show what judging cost, by team, run or judge"),
    "teams": CommandInfo("Manage", "Create teams, set budgets and limits", "server"),
    "keys": CommandInfo("Manage", "Create, list and revoke API keys", "server"),
    "migrate": CommandInfo("Manage", "Bring the database to this version", "server"),
    "prune": CommandInfo("Manage", "Delete old rollouts and verdicts", "server"),
}
"""Every command by section, in the order of the help."""


class SectionedGroup(TyperGroup):
    """A command group whose help lists the commands by section."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one list a section; a command that the table does not know is listed last."""
        registered = self.list_commands(ctx)
        known = {name: info for name, info in COMMANDS.items() if name in registered}
        for section in dict.fromkeys(info.section for info in known.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, i.summary) for name, i in known.items() if i.section == section]
                )
        others = [name for name in registered if name not in known]
        if others:
            with formatter.section("Other"):
                formatter.write_dl([(name, "") for name in others])


app = typer.Typer(
    name="markscheme",
    cls=SectionedGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Rubrics and rewards for reinforcement learning, over HTTP.\n\n"
    "Start 'markscheme serve' in one terminal, then run 'markscheme score FILE.jsonl' or "
    "'markscheme train CONFIG.yaml' in another.\n\n"
    "score, teach, induce, runs, findings, open, replay, report, rubrics, usage and train talk to "
    "the service; serve, doctor, teams, keys, migrate and prune open its database.",
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"markscheme {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command; the help of `app` describes it."""


for command in (score, teach, induce, usage, findings, replay, report):
    app.command(epilog=EPILOG)(command)
app.command("open", epilog=EPILOG)(open_run)
app.add_typer(runs, name="runs")
app.add_typer(rubrics, name="rubrics")


def _add_missing(name: str, error: ImportError) -> None:
    """Register a command that only says which extra it needs, or why it cannot be loaded."""
    extra = COMMANDS[name].extra if name in COMMANDS else ""
    hint = f"'markscheme {name}' " + (
        f"needs the {extra} extra: pip install 'markscheme[{extra}]'"
        if extra
        else f"cannot be loaded: {error}"
    )

    def command() -> None:
        typer.echo(hint, err=True)
        raise typer.Exit(1)

    app.command(
        name,
        help=hint,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(command)


def main() -> None:
    """Register the commands of the installed extras, and run."""
    # OpenMP reads this when torch is imported: waiting threads sleep instead of spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for point in entry_points(group=ENTRY_POINTS):
        # Importing the server for 'markscheme score' would take longer than the rest of the start.
        if sys.argv[1:2] == ["--version"] or (asked in COMMANDS and asked != point.name):
            continue
        try:
            command = point.load()
        except ImportError as error:
            _add_missing(point.name, error)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)
    app()
