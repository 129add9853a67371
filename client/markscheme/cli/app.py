"""The ``markscheme`` command. Commands of the server and the trainer are found where they are installed."""

import os
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from markscheme.client import Client
from markscheme.errors import MarkschemeError
from markscheme.rows import given, read_rows
from markscheme.schema import Group, ScoreBatch
from markscheme.vocabulary import ReusePolicy, ReuseScope, Thinking, VerifyMode, in_words

DEFAULT_URL = "http://127.0.0.1:8321"
GROUPS_A_CALL = 32

app = typer.Typer(
    name="markscheme",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Prompt-specific rubrics and rewards over HTTP, and a trainer that learns from them.\n\n"
    "Start with 'markscheme serve' in one terminal; then 'markscheme score file.jsonl' or "
    "'markscheme train config.yaml' in another.",
)


@app.command()
def score(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL: a line a group, {"prompt", "rollouts": [text, …]} '
            'and optionally "id", "teacher_responses", "rubric_id".'
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write; default FILE.scored.jsonl."),
    ] = None,
    url: Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")] = DEFAULT_URL,
    reuse: Annotated[str, typer.Option(help="always_new, if_fresh or frozen.")] = "if_fresh",
    verify: Annotated[str, typer.Option(help="rollout or group.")] = "rollout",
    thinking: Annotated[
        str,
        typer.Option(
            help="What of a rollout is judged: auto cuts off a thought that it opens "
            "itself, strip one that its chat template opened, keep nothing."
        ),
    ] = "auto",
    reuse_scope: Annotated[
        str | None,
        typer.Option(
            help=(
                "Whose rubrics are reused: own, shared (also those shared with your team) or organisation. Default: the "
                "team's setting; without one, own where a group has a teacher to go by."
            )
        ),
    ] = None,
) -> None:
    """Score rollouts of a JSONL file; writes one scored group a line. Rewards that are not known are null.

    Running it again goes on where it stopped: groups already in the output are not sent again.
    """
    console = Console(stderr=True)
    target = output or file.with_suffix(".scored.jsonl")
    try:
        groups = read_groups(file)
        done = scored_already(target)
        todo = [g for g in groups if g.id not in done]
        if done:
            console.print(f"{len(done)} groups are in {target} already", markup=False)
        reasons = _score_into(
            target,
            todo,
            url,
            _choice(reuse, ReusePolicy, "--reuse"),
            _choice(verify, VerifyMode, "--verify"),
            _choice(thinking, Thinking, "--thinking"),
            _choice(reuse_scope, ReuseScope, "--reuse-scope") if reuse_scope is not None else None,
            console,
        )
    except (MarkschemeError, ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(
            f"stopped; what was scored is in {target}: run the command again to go on", markup=False
        )
        raise typer.Exit(130) from None
    summary = [f"{len(todo)} groups scored into {target}; {reasons.total()} rollouts unscored"]
    if reasons:
        summary += [
            *in_words(reasons),
            f"To have a group scored anew, take its line out of {target} and run this again.",
        ]
    console.print("\n".join(summary), markup=False, highlight=False, soft_wrap=True)


@app.command()
def teach(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL: a line a prompt, {"prompt"} and optionally '
            '"teacher_responses", which are put into the bank as they are.'
        ),
    ],
    count: Annotated[
        int, typer.Option(min=0, max=16, help="Responses a prompt should have; 0: ask for none.")
    ] = 4,
    ropd_index: Annotated[
        Path | None,
        typer.Option(
            help="A teacher index of ROPD (JSONL, v1 or v2): its answers go to the prompts of FILE that they are of."
        ),
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
        with (
            Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client,
            Progress(*columns, console=console) as progress,
        ):
            bar = progress.add_task("prompts", total=len(entries))
            teach_all(
                client,
                entries,
                report,
                count=count,
                at_once=at_once,
                on_prompt=lambda: progress.advance(bar),
            )
    except (MarkschemeError, ValueError, OSError) as error:
        console.print(f"{error}\n{report}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(
            f"stopped; run the command again to go on. {report}", markup=False, soft_wrap=True
        )
        raise typer.Exit(130) from None
    console.print(str(report), markup=False, soft_wrap=True)


def read_groups(file: Path) -> list[Group]:
    """The groups of a JSONL file; a rollout may be a text or an object. Raises ``ValueError`` naming the line."""
    groups = [
        group if named else group.model_copy(update={"id": f"line-{number}"})
        for number, (named, group) in read_rows(file, _group)
    ]
    if not groups:
        raise ValueError(f"{file} holds no groups")
    return groups


def scored_already(target: Path) -> set[str]:
    """The ids of the groups in a scored file. Raises ``ValueError`` naming a line that is none."""
    return {name for _, name in read_rows(target, _scored_id)} if target.exists() else set()


def _group(row: Any) -> tuple[bool, Group]:
    """Whether the row names its group, and the group."""
    columns = given(row)
    rollouts = columns.get("rollouts")
    if isinstance(rollouts, list):
        columns["rollouts"] = [_rollout(i, rollout) for i, rollout in enumerate(rollouts)]
    return "id" in columns, Group.model_validate({"id": "unnamed", **columns})


def _rollout(place: int, row: Any) -> Any:
    if isinstance(row, str):
        return {"id": f"r{place}", "text": row}
    return {"id": f"r{place}", **row} if isinstance(row, dict) else row


def _scored_id(row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ValueError("not a scored group")
    name: str = row["id"]
    return name


def _unended(file: Path) -> bool:
    """Whether the last line of a file has no end."""
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open("rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read() != b"\n"


def _choice(value: str, options: object, name: str) -> object:
    allowed = options.__args__  # type: ignore[attr-defined]
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    return value


def _score_into(
    target: Path,
    groups: list[Group],
    url: str,
    reuse: object,
    verify: object,
    thinking: object,
    reuse_scope: object,
    console: Console,
) -> Counter[str]:
    """Score and append; each line is on disk before the next batch is sent.

    Returns how many rollouts are unscored for each reason.
    """
    reasons = Counter[str]()
    unended = _unended(target)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    key = os.environ.get("MARKSCHEME_API_KEY")
    with (
        Client(url, api_key=key) as client,
        target.open("a", encoding="utf-8") as out,
        Progress(*columns, console=console) as progress,
    ):
        if unended:
            out.write("\n")
        bar = progress.add_task("groups", total=len(groups))
        for start in range(0, len(groups), GROUPS_A_CALL):
            batch: ScoreBatch = client.score(
                groups[start : start + GROUPS_A_CALL],
                reuse=reuse,  # type: ignore[arg-type]
                verify=verify,  # type: ignore[arg-type]
                thinking=thinking,  # type: ignore[arg-type]
                reuse_scope=reuse_scope,  # type: ignore[arg-type]
                on_group=lambda _: progress.advance(bar),
            )
            out.writelines(group.model_dump_json() + "\n" for group in batch.groups)
            out.flush()
            reasons.update(batch.reasons)
    return reasons


_OWN = ("score", "teach", "rubrics", "usage")
_NEEDS = {
    "serve": "server",
    "migrate": "server",
    "doctor": "server",
    "prune": "server",
    "teams": "server",
    "keys": "server",
    "train": "train",
    "demo": "train",
    "demo-control": "train",
}


def _missing(name: str, extra: str) -> None:
    def command() -> None:
        typer.echo(
            f"'markscheme {name}' needs the {extra} extra: pip install 'markscheme[{extra}]'",
            err=True,
        )
        raise typer.Exit(1)

    app.command(
        name,
        help=f"(not installed: pip install 'markscheme[{extra}]')",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(command)


def main() -> None:
    """Register the commands that are installed, and run."""
    # OpenMP reads this when torch is imported: its waiting threads sleep instead of spinning beside other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from markscheme.cli.rubrics import rubrics
    from markscheme.cli.usage import usage

    app.add_typer(rubrics, name="rubrics")
    app.command()(usage)
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for point in sorted(
        entry_points(group="markscheme.commands"), key=lambda p: list(_NEEDS).index(p.name)
    ):
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
