"""``markscheme rubrics``: finding rubrics and their lineage; rubrics into the service and out of it."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.tree import Tree

from markscheme.cli.app import DEFAULT_URL
from markscheme.client import Client
from markscheme.errors import InvalidRequest, MarkschemeError
from markscheme.exchange import Imported, load
from markscheme.lines import BLANK, LineError, raw_lines, without_mark
from markscheme.schema import (
    Criterion,
    Lineage,
    LineageMaker,
    LineageNode,
    LineageResponse,
    LineageRubric,
    LineageRun,
    Message,
    RubricImported,
    RubricList,
    Tag,
)
from markscheme.vocabulary import Category, ExchangeFormat

Url = Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")]
Format = Annotated[ExchangeFormat, typer.Option(help="What the file is.")]
WIDTH = 160
"""Of what is printed into no terminal."""
SHOWN_LENGTH = 60
"""Characters of a prompt or a response."""

rubrics = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Find rubrics, see where they come from; bring them in other formats into the service "
    "and take them out.",
)


@dataclass(frozen=True, slots=True)
class Brought:
    """How the rubrics of a file are brought in: all alike."""

    client: Client
    format: ExchangeFormat
    prompt: str | None
    tags: list[str]
    allow_loss: bool

    def read(self, text: bytes) -> tuple[dict[str, Any], Imported]:
        """One content, and what it says. Raises ``ValueError``."""
        content = from_json(text, allow_inf_nan=False)
        return content, load(content, self.format, prompt=self.prompt, allow_loss=self.allow_loss)

    def send(self, content: dict[str, Any]) -> RubricImported:
        return self.client.import_rubric(
            content, self.format, prompt=self.prompt, tags=self.tags, allow_loss=self.allow_loss
        )


@dataclass(slots=True)
class ImportReport:
    """What came of a data set, counted as it happens."""

    imported: int = 0
    failed: int = 0
    losses: int = 0
    first_loss: str = ""
    prompts: dict[tuple[Message, ...], tuple[int, tuple[Criterion, ...]]] = field(
        default_factory=dict
    )

    def __str__(self) -> str:
        lost = f"; {self.losses} losses, the first: {self.first_loss}" if self.losses else ""
        return f"{self.imported} rubrics are in the service, {self.failed} lines failed{lost}"


@rubrics.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSON: one rubric; JSONL: a rubric a line.")],
    format: Format,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the rubric is for, where the format (ropd, verifiers) holds no prompt."
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag for each rubric; may be given several times.")
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out what cannot be held, and say what.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Bring rubrics of a file into the service; prints the id of a single one.

    A line of a JSONL file that fails is named, the others are brought. Running it again makes nothing twice.
    """
    console = Console(stderr=True)
    report = ImportReport()
    try:
        tags = _checked_tags(tag or [])
        with Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client:
            brought = Brought(client, format, prompt, tags, allow_loss)
            if file.suffix != ".jsonl":
                _import_one(file, brought, console)
                return
            lines = list(_lines(file))
            if not lines:
                raise ValueError(f"{file} holds no rubrics")
            columns = (
                TextColumn("importing"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=console) as progress:
                bar = progress.add_task("rubrics", total=len(lines))
                for number, text in lines:
                    _import_line(
                        number, text, brought, report, lambda said: _say(console, f"{file}, {said}")
                    )
                    progress.advance(bar)
    except (MarkschemeError, ValueError, OSError) as error:
        stopped = (
            f"\nstopped; run it again to go on. {report}"
            if report.imported or report.failed
            else ""
        )
        _say(console, f"{error}{stopped}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(
            f"stopped; run the command again to go on. {report}", markup=False, soft_wrap=True
        )
        raise typer.Exit(130) from None
    console.print(str(report), markup=False, soft_wrap=True)
    if report.failed:
        raise typer.Exit(1)


@rubrics.command("export")
def export(
    rubric_id: Annotated[str, typer.Argument(metavar="ID", help="The rubric.")],
    format: Format = "native",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; default: the screen.")
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option("--allow-loss", help="Leave out what the format cannot hold, and say what."),
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a rubric of the service in another format."""
    console = Console(stderr=True)
    try:
        with Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client:
            exported = client.export_rubric(rubric_id, format, allow_loss=allow_loss)
        text = json.dumps(exported.content, ensure_ascii=False, indent=2) + "\n"
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, "utf-8")
    except (MarkschemeError, ValueError, OSError) as error:
        _say(console, str(error))
        raise typer.Exit(1) from error
    _tell(console, exported.losses)


@rubrics.command("search")
def search(
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Words of the prompt and the criteria.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag; may be given several times: all of them.")
    ] = None,
    team: Annotated[str | None, typer.Option(help="The team that made it.")] = None,
    category: Annotated[Category | None, typer.Option(help="Of one of the criteria.")] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="The least share of its scored groups whose rewards have spread."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="The newest of them.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as it is.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Find the rubrics that your team sees, newest first. Of what is given a rubric has everything."""
    try:
        with Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client:
            found = client.rubrics(
                text=text,
                tags=tag or (),
                team=team,
                category=category,
                min_quality=min_quality,
                limit=limit,
            )
    except (MarkschemeError, ValueError) as error:
        _say(Console(stderr=True), str(error))
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = _screen()
    console.print(_table(found))
    if found.has_more:
        console.print("there are more than are shown: --limit, or more words")


@rubrics.command("lineage")
def lineage(
    rubric_id: Annotated[str, typer.Argument(metavar="ID", help="The rubric.")],
    as_json: Annotated[bool, typer.Option("--json", help="The answer as it is.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a rubric was made from, what was made from it, and what came of training on it."""
    try:
        with Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client:
            found = client.lineage(rubric_id)
    except (MarkschemeError, ValueError) as error:
        _say(Console(stderr=True), str(error))
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = _screen()
    for tree in _trees(found):
        console.print(tree)
    verdicts, use = found.verdicts, found.use
    console.print(
        f"{use.groups} groups of your team and {use.other_teams_groups} of others, "
        f"quality {_share(use.quality)}; verdicts: {verdicts.met} met, {verdicts.not_met} not met, "
        f"{verdicts.unscored} rollouts unscored"
    )
    if found.truncated:
        console.print("there is more than is shown")


def _table(found: RubricList) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("version", justify="right")
    table.add_column("team")
    table.add_column("quality", justify="right")
    table.add_column("tags")
    table.add_column("prompt", no_wrap=True)
    for rubric in found.data:
        table.add_row(
            rubric.id,
            str(rubric.version),
            rubric.team,
            _share(found.quality.get(rubric.id)),
            " ".join(rubric.tags),
            _beginning(rubric.prompt[-1].content),
        )
    return table


def _trees(found: Lineage) -> list[Tree]:
    """Rubrics under what they were made from; first what made a rubric, its responses and its runs."""
    nodes = {node.id: node for node in found.nodes}
    trees = {
        node.id: Tree(_line(node, node.id == found.rubric_id))
        for node in found.nodes
        if isinstance(node, LineageRubric)
    }
    children = {edge.target: edge for edge in found.edges if edge.kind in ("version", "fork")}
    for edge in found.edges:
        if edge.kind == "scored":
            trees[edge.source].add(_line(nodes[edge.target]))
        elif edge.kind not in ("version", "fork"):
            trees[edge.target].add(_line(nodes[edge.source]))
    for target, edge in reversed(children.items()):
        trees[edge.source].children.append(trees[target])
    return [tree for rubric_id, tree in trees.items() if rubric_id not in children]


def _line(node: LineageNode, asked: bool = False) -> str:
    match node:
        case LineageRubric():
            marks = [
                node.origin,
                *(["retired"] if node.retired_at else []),
                *(["its parent is not shown to you any more"] if node.parent_hidden else []),
            ]
            return (
                f"{'* ' if asked else ''}{node.id}  version {node.version} of {node.team}  "
                f"quality {_share(node.quality)}  ({', '.join(marks)})"
            )
        case LineageMaker():
            return f"{node.role.replace('_', ' ')}: {node.name}"
        case LineageResponse():
            said = f"“{_beginning(node.text)}”" if node.text is not None else "(text not kept)"
            return f"{node.role} {node.key[:12]}: {said}"
        case LineageRun():
            change = (
                ""
                if node.reward_change is None
                else (
                    f", reward {node.first_reward:.2f} → {node.last_reward:.2f} ({node.reward_change:+.2f})"
                )
            )
            return (
                f"run {node.run}: {node.groups} groups, {node.groups_with_spread} with spread, "
                f"steps {node.first_step} to {node.last_step}{change}"
            )


def _beginning(text: str) -> str:
    """A line of a text, without what a terminal would obey."""
    line = " ".join(
        "".join(c if c.isprintable() else " " for c in text[: 10 * SHOWN_LENGTH]).split()
    )
    return line if len(line) <= SHOWN_LENGTH else line[: SHOWN_LENGTH - 1] + "…"


def _share(quality: float | None) -> str:
    return "-" if quality is None else f"{quality:.2f}"


def _screen() -> Console:
    return Console(
        markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH
    )


def _import_one(file: Path, brought: Brought, console: Console) -> None:
    try:
        text = without_mark(file.read_bytes())
    except LineError as error:
        raise ValueError(f"{file}, {error}") from None
    content, _ = brought.read(text)
    made = brought.send(content)
    _tell(console, made.losses)
    typer.echo(made.rubric.id)


def _import_line(
    number: int, text: bytes, brought: Brought, report: ImportReport, say: Callable[[str], None]
) -> None:
    """Bring one line in, or say why not. What has nothing to do with the line (no service, no key) is raised."""
    try:
        content, found = brought.read(text)
        before, criteria = report.prompts.get(found.prompt, (number, found.criteria))
        if criteria != found.criteria:
            # Groups get a prompt's newest rubric: of two in one file it would be the last by chance, and running
            # the command again would make both anew.
            raise ValueError(
                f"its prompt is that of line {before}, with other criteria: keep one of the two"
            )
        made = brought.send(content)
        report.prompts[found.prompt] = before, criteria
    except (ValueError, InvalidRequest) as error:
        report.failed += 1
        say(f"line {number}: {error}")
        return
    report.imported += 1
    report.losses += len(made.losses)
    if made.losses and not report.first_loss:
        report.first_loss = f"line {number}, {made.losses[0]}"


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, as bytes: one that is no UTF-8 fails alone."""
    for number, line in enumerate(raw_lines(file), 1):
        if line.strip(BLANK.encode()):
            yield number, line


def _checked_tags(tags: list[str]) -> list[str]:
    try:
        return TypeAdapter(list[Tag]).validate_python(tags)
    except ValidationError as error:
        raise ValueError("--tag takes up to 64 letters, digits and . : / _ -") from error


def _tell(console: Console, losses: Sequence[str]) -> None:
    for loss in losses:
        console.print(f"left out: {loss}", markup=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, soft_wrap=True)
