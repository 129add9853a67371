"""``markscheme rubrics``: rubrics into the service and out of it, one or a whole data set."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from markscheme.cli import DEFAULT_URL
from markscheme.client import Client
from markscheme.errors import InvalidRequest, MarkschemeError
from markscheme.exchange import Imported, load
from markscheme.schema import Criterion, Message, RubricImported, Tag
from markscheme.vocabulary import ExchangeFormat

Url = Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")]
Format = Annotated[ExchangeFormat, typer.Option(help="What the file is.")]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

rubrics = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                      help="Bring rubrics in other formats into the service, and take them out.")


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
        return self.client.import_rubric(content, self.format, prompt=self.prompt, tags=self.tags,
                                         allow_loss=self.allow_loss)


@dataclass(slots=True)
class ImportReport:
    """What came of a data set, counted as it happens."""

    imported: int = 0
    failed: int = 0
    losses: int = 0
    first_loss: str = ""
    prompts: dict[tuple[Message, ...], tuple[int, tuple[Criterion, ...]]] = field(default_factory=dict)

    def __str__(self) -> str:
        lost = f"; {self.losses} losses, the first: {self.first_loss}" if self.losses else ""
        return f"{self.imported} rubrics are in the service, {self.failed} lines failed{lost}"


@rubrics.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSON: one rubric; JSONL: a rubric a line.")],
    format: Format,
    prompt: Annotated[str | None, typer.Option(help="What the rubric is for, where the format (ropd, verifiers) "
                                                    "holds no prompt.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag for each rubric; may be given several times.")] = None,
    allow_loss: Annotated[bool, typer.Option("--allow-loss", help="Leave out what cannot be held, and say what.")
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
            columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console) as progress:
                bar = progress.add_task("rubrics", total=len(lines))
                for number, text in lines:
                    _import_line(number, text, brought, report, lambda said: _say(console, f"{file}, {said}"))
                    progress.advance(bar)
    except (MarkschemeError, ValueError, OSError) as error:
        stopped = f"\nstopped; run it again to go on. {report}" if report.imported or report.failed else ""
        _say(console, f"{error}{stopped}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(f"stopped; run the command again to go on. {report}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    console.print(str(report), markup=False, soft_wrap=True)
    if report.failed:
        raise typer.Exit(1)


@rubrics.command("export")
def export(
    rubric_id: Annotated[str, typer.Argument(metavar="ID", help="The rubric.")],
    format: Format = "native",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write; default: the screen.")] = None,
    allow_loss: Annotated[bool, typer.Option("--allow-loss", help="Leave out what the format cannot hold, and say "
                                                                  "what.")] = False,
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


def _import_one(file: Path, brought: Brought, console: Console) -> None:
    content, _ = brought.read(file.read_bytes().removeprefix(BYTE_ORDER_MARK))
    made = brought.send(content)
    _tell(console, made.losses)
    typer.echo(made.rubric.id)


def _import_line(number: int, text: bytes, brought: Brought, report: ImportReport, say: Callable[[str], None]) -> None:
    """Bring one line in, or say why not. What has nothing to do with the line (no service, no key) is raised."""
    try:
        content, found = brought.read(text)
        before, criteria = report.prompts.get(found.prompt, (number, found.criteria))
        if criteria != found.criteria:
            # Groups get a prompt's newest rubric: of two in one file it would be the last by chance, and running
            # the command again would make both anew.
            raise ValueError(f"its prompt is that of line {before}, with other criteria: keep one of the two")
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
    """Numbered lines that are not blank. Of bytes: JSON strings may hold what ``str`` takes for ends of lines."""
    for number, line in enumerate(file.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        if line.strip():
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
