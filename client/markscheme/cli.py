"""The ``markscheme`` command. Commands of the server and the trainer are found where they are installed."""

import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from markscheme.client import Client
from markscheme.errors import MarkschemeError
from markscheme.schema import Group, ScoreBatch
from markscheme.vocabulary import ReusePolicy, ReuseScope, VerifyMode

DEFAULT_URL = "http://127.0.0.1:8321"
GROUPS_A_CALL = 32

app = typer.Typer(
    name="markscheme", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    help="Prompt-specific rubrics and rewards over HTTP, and a trainer that learns from them.\n\n"
         "Start with 'markscheme serve' in one terminal; then 'markscheme score file.jsonl' or "
         "'markscheme train config.yaml' in another.",
)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSONL: a line a group, {\"prompt\", \"rollouts\": [text, …]} "
                                              "and optionally \"id\", \"teacher_responses\", \"rubric_id\".")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write; default FILE.scored.jsonl.")
                      ] = None,
    url: Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")] = DEFAULT_URL,
    reuse: Annotated[str, typer.Option(help="always_new, if_fresh or frozen.")] = "if_fresh",
    verify: Annotated[str, typer.Option(help="rollout or group.")] = "rollout",
    reuse_scope: Annotated[str | None, typer.Option(help=(
        "Whose rubrics are reused: own, shared (also those shared with your team) or organisation. Default: the "
        "team's setting; without one, own where a group has a teacher to go by."))] = None,
) -> None:
    """Score rollouts of a JSONL file; writes one scored group a line. Rewards that are not known are null.

    Running it again goes on where it stopped: groups already in the output are not sent again.
    """
    console = Console(stderr=True)
    target = output or file.with_suffix(".scored.jsonl")
    try:
        groups = read_groups(file)
        done = {json.loads(line)["id"] for line in target.read_text().splitlines()} if target.exists() else set()
        todo = [g for g in groups if g.id not in done]
        if done:
            console.print(f"{len(done)} groups are in {target} already", markup=False)
        unscored = _score_into(target, todo, url, _choice(reuse, ReusePolicy, "--reuse"),
                               _choice(verify, VerifyMode, "--verify"),
                               _choice(reuse_scope, ReuseScope, "--reuse-scope") if reuse_scope is not None else None,
                               console)
    except (MarkschemeError, ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(f"stopped; what was scored is in {target}: run the command again to go on", markup=False)
        raise typer.Exit(130) from None
    console.print(f"{len(todo)} groups scored into {target}; {unscored} rollouts unscored", markup=False,
                  soft_wrap=True)


@app.command()
def teach(
    file: Annotated[Path, typer.Argument(help="JSONL: a line a prompt, {\"prompt\"} and optionally "
                                              "\"teacher_responses\", which are put into the bank as they are.")],
    count: Annotated[int, typer.Option(min=0, max=16, help="Responses a prompt should have; 0: ask for none.")] = 4,
    ropd_index: Annotated[Path | None, typer.Option(
        help="A teacher index of ROPD (JSONL, v1 or v2): its answers go to the prompts of FILE that they are of.")
        ] = None,
    url: Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")] = DEFAULT_URL,
    at_once: Annotated[int, typer.Option(min=1, help="Prompts asked for at a time.")] = 8,
) -> None:
    """Fill the service's teacher bank: from the file, and by asking the service's teacher for what is missing.

    Running it again goes on where it stopped: a prompt that has enough responses costs nothing.
    """
    from markscheme.teaching import TeachReport, read_prompts, teach_all

    console = Console(stderr=True)
    report = TeachReport()
    columns = (TextColumn("teaching"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        entries = read_prompts(file, ropd_index)
        with (Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client,
              Progress(*columns, console=console) as progress):
            bar = progress.add_task("prompts", total=len(entries))
            teach_all(client, entries, report, count=count, at_once=at_once, on_prompt=lambda: progress.advance(bar))
    except (MarkschemeError, ValueError, OSError) as error:
        console.print(f"{error}\n{report}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(f"stopped; run the command again to go on. {report}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    console.print(str(report), markup=False, soft_wrap=True)


def read_groups(file: Path) -> list[Group]:
    """The groups of a JSONL file; a rollout may be a text or an object. Raises ``ValueError`` naming the line."""
    groups = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rollouts = [{"id": f"r{i}", "text": r} if isinstance(r, str) else {"id": f"r{i}"} | r
                        for i, r in enumerate(row.pop("rollouts"))]
            groups.append(Group.model_validate({"id": f"line-{number}", **row, "rollouts": rollouts}))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: {error if not isinstance(error, KeyError) else 'no rollouts'}"
                             ) from error
    if not groups:
        raise ValueError(f"{file} holds no groups")
    return groups


def _choice(value: str, options: object, name: str) -> object:
    allowed = options.__args__  # type: ignore[attr-defined]
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    return value


def _score_into(target: Path, groups: list[Group], url: str, reuse: object, verify: object,
                reuse_scope: object, console: Console) -> int:
    """Score and append; each line is on disk before the next batch is sent. Returns the unscored rollouts."""
    unscored = 0
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    key = os.environ.get("MARKSCHEME_API_KEY")
    with (Client(url, api_key=key) as client, target.open("a", encoding="utf-8") as out,
          Progress(*columns, console=console) as progress):
        bar = progress.add_task("groups", total=len(groups))
        for start in range(0, len(groups), GROUPS_A_CALL):
            batch: ScoreBatch = client.score(groups[start:start + GROUPS_A_CALL], reuse=reuse, verify=verify,  # type: ignore[arg-type]
                                             reuse_scope=reuse_scope, on_group=lambda _: progress.advance(bar))  # type: ignore[arg-type]
            out.writelines(group.model_dump_json() + "\n" for group in batch.groups)
            out.flush()
            unscored += batch.counts.unscored
    return unscored


_OWN = ("score", "teach", "rubrics", "usage")
_NEEDS = {"serve": "server", "migrate": "server", "doctor": "server", "prune": "server", "teams": "server",
          "keys": "server", "train": "train", "demo": "train", "demo-control": "train"}


def _missing(name: str, extra: str) -> None:
    def command() -> None:
        typer.echo(f"'markscheme {name}' needs the {extra} extra: pip install 'markscheme[{extra}]'", err=True)
        raise typer.Exit(1)

    app.command(name, help=f"(not installed: pip install 'markscheme[{extra}]')")(command)


def main() -> None:
    """Register the commands that are installed, and run."""
    # OpenMP reads this when torch is imported: its waiting threads sleep instead of spinning beside other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from markscheme.rubrics_cli import rubrics
    from markscheme.usage_cli import usage

    app.add_typer(rubrics, name="rubrics")
    app.command()(usage)
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for point in sorted(entry_points(group="markscheme.commands"), key=lambda p: list(_NEEDS).index(p.name)):
        if asked in (*_OWN, *_NEEDS) and asked != point.name:
            continue  # to load the server for 'markscheme score' takes longer than the rest of the start
        try:
            command = point.load()
        except ImportError:
            _missing(point.name, _NEEDS[point.name])
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
