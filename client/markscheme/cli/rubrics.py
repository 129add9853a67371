"""``markscheme rubrics``: search rubrics, show their lineage, import and export them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.tree import Tree

from markscheme.cli.output import (
    EPILOG,
    Json,
    Url,
    connect,
    fail,
    reported_errors,
    screen,
    table_width,
)
from markscheme.cli.rubric_import import FormatOption, import_file, name_option, print_losses
from markscheme.client import DEFAULT_URL
from markscheme.errors import MarkschemeError
from markscheme.schema import (
    Lineage,
    LineageMaker,
    LineageNode,
    LineageResponse,
    LineageRubric,
    LineageRun,
    Rubric,
    RubricList,
)
from markscheme.vocabulary import Category

EXCERPT_CHARS = 60
"""Characters shown of a prompt or a response."""
COLUMN_GAP = 2
MIN_PROMPT_WIDTH = 20
"""Columns that a table must leave for the prompt; with fewer, each rubric takes two lines."""

rubrics = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EPILOG,
    help="Search rubrics, show where they come from, import and export them.",
)
rubrics.command("import", epilog=EPILOG)(import_file)


@rubrics.command("export", epilog=EPILOG)
def export(
    rubric_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the rubric.")],
    format: FormatOption = "native",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: the screen.")
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option("--allow-loss", help="Drop what the format cannot hold, and list it."),
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a rubric to a file, in one of the formats."""
    try:
        with connect(url) as client:
            exported = client.export_rubric(rubric_id, format, allow_loss=allow_loss)
        text = json.dumps(exported.content, ensure_ascii=False, indent=2) + "\n"
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, "utf-8")
    except (MarkschemeError, ValueError, OSError) as error:
        fail(name_option(error))
    print_losses(exported.losses)


@rubrics.command("search", epilog=EPILOG)
def search(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Words of the prompt and the criteria.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be given several times.")] = None,
    team: Annotated[str | None, typer.Option(help="Team that made the rubric.")] = None,
    category: Annotated[
        Category | None, typer.Option(help="Category of at least one criterion.")
    ] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Minimum share of scored groups in which rollouts got different rewards.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Rubrics to show.")] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Find rubrics that your team may see, newest first.

    All filters must match.
    """
    with reported_errors(), connect(url) as client:
        found = client.rubrics(
            text=text,
            tags=tag or (),
            team=team,
            category=category,
            min_quality=min_quality,
            limit=limit,
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = screen()
    if not found.data:
        filters = {
            "text": text,
            "tag": ", ".join(tag or ()),
            "team": team,
            "category": category,
            "min-quality": min_quality,
        }
        asked = ", ".join(f"{name} {value!r}" for name, value in filters.items() if value)
        console.print(
            "No rubric that your team may see matches" + (f": {asked}." if asked else " yet."),
            soft_wrap=True,
        )
        return
    _print_rubrics(console, found)
    if found.has_more:
        console.print("there are more than are shown: raise --limit, or add words")


@rubrics.command("lineage", epilog=EPILOG)
def lineage(
    rubric_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the rubric.")],
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a rubric's origin, versions and forks.

    A tree of its versions and forks, with the models and responses it was induced from and the
    runs that were scored by it.
    """
    with reported_errors(), connect(url) as client:
        found = client.lineage(rubric_id)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = screen()
    for tree in _trees(found):
        # A narrow terminal wraps the lines: cropping would cut ids.
        console.print(tree)
    verdicts, use = found.verdicts, found.use
    console.print(
        f"{use.groups} groups of your team and {use.other_teams_groups} of others, "
        f"quality {_format_share(use.quality)}; verdicts: {verdicts.met} met, "
        f"{verdicts.not_met} not met"
        + (f", {verdicts.not_applicable} not applicable" if verdicts.not_applicable else "")
        + f", {verdicts.unscored} rollouts unscored",
        soft_wrap=True,
    )
    if found.truncated:
        console.print("there is more than is shown")


def _print_rubrics(console: Console, found: RubricList) -> None:
    """Print a table, or two lines a rubric where the terminal is too narrow for one."""
    remaining = console.width - table_width(console, _table(found)) - COLUMN_GAP
    if remaining >= MIN_PROMPT_WIDTH:
        console.print(_table(found, min(remaining, EXCERPT_CHARS)))
        return
    for rubric in found.data:
        name, version, team, quality, tags = _cells(rubric, found)
        console.print(f"{name}  version {version} of {team}  quality {quality}", soft_wrap=True)
        prompt = _excerpt(rubric.prompt[-1].text)
        console.print(Padding(f"[{tags}] {prompt}" if tags else prompt, (0, 0, 0, 4)))


def _table(found: RubricList, prompt_width: int = 0) -> Table:
    """Return the table, with a last column of prompts unless its width is 0."""
    table = Table(box=None, pad_edge=False)
    for name in ("id", "version", "team", "quality", "tags"):
        numeric = name in ("version", "quality")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    if prompt_width:
        table.add_column("prompt", no_wrap=True)
    for rubric in found.data:
        prompt = _excerpt(rubric.prompt[-1].text, prompt_width)
        table.add_row(*_cells(rubric, found), *([prompt] if prompt_width else []))
    return table


def _cells(rubric: Rubric, found: RubricList) -> tuple[str, str, str, str, str]:
    quality = _format_share(found.quality.get(rubric.id))
    return rubric.id, str(rubric.version), rubric.team, quality, " ".join(rubric.tags)


def _trees(found: Lineage) -> list[Tree]:
    """Return rubrics below their parents; each begins with what made it and its runs."""
    nodes = {node.id: node for node in found.nodes}
    trees = {
        node.id: Tree(_node_line(node, node.id == found.rubric_id))
        for node in found.nodes
        if isinstance(node, LineageRubric)
    }
    children = {edge.target: edge for edge in found.edges if edge.kind in ("version", "fork")}
    for edge in found.edges:
        if edge.kind == "scored":
            trees[edge.source].add(_node_line(nodes[edge.target]))
        elif edge.kind not in ("version", "fork"):
            trees[edge.target].add(_node_line(nodes[edge.source]))
    # The service lists the newest first; here they follow in the order in which they were made.
    for target, edge in reversed(children.items()):
        trees[edge.source].children.append(trees[target])
    return [tree for rubric_id, tree in trees.items() if rubric_id not in children]


def _node_line(node: LineageNode, asked: bool = False) -> str:
    match node:
        case LineageRubric():
            marks = [
                node.origin,
                *(["retired"] if node.retired_at else []),
                *(["its parent is not shown to you any more"] if node.parent_hidden else []),
            ]
            return (
                f"{'* ' if asked else ''}{node.id}  version {node.version} of {node.team}  "
                f"quality {_format_share(node.quality)}  ({', '.join(marks)})"
            )
        case LineageMaker():
            return f"{node.role.replace('_', ' ')}: {node.name}"
        case LineageResponse():
            excerpt = f"“{_excerpt(node.text)}”" if node.text is not None else "(text not kept)"
            return f"{node.role} {node.key[:12]}: {excerpt}"
        case LineageRun():
            change = (
                ""
                if node.reward_change is None
                else (
                    f", reward {node.first_reward:.2f} → {node.last_reward:.2f} "
                    f"({node.reward_change:+.2f})"
                )
            )
            return (
                f"run {node.run}: {node.groups} groups, {node.groups_with_spread} with spread, "
                f"steps {node.first_step} to {node.last_step}{change}"
            )


def _excerpt(text: str, limit: int = EXCERPT_CHARS) -> str:
    """Return the beginning of a text on one line, without characters that a terminal obeys."""
    start = text[: 10 * EXCERPT_CHARS]
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _format_share(quality: float | None) -> str:
    return "-" if quality is None else f"{quality:.2f}"
