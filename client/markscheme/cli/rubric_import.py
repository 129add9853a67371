"""``markscheme rubrics import``: bring the rubrics of a file into the service."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from markscheme.cli.output import Url, connect, fail, messages, print_error, progress_bar
from markscheme.client import DEFAULT_URL, Client
from markscheme.errors import AuthenticationFailed, InvalidRequest, MarkschemeError
from markscheme.exchange import Imported, load
from markscheme.jsonl import WHITESPACE, LineError, read_raw_lines, strip_bom
from markscheme.schema import Criterion, Message, RubricImported, Tag
from markscheme.vocabulary import ExchangeFormat

FormatOption = Annotated[ExchangeFormat, typer.Option(help="Format of the file.")]


class RubricImporter:
    """Imports rubrics of one file: all in the same format, with the same prompt and tags."""

    def __init__(
        self,
        client: Client,
        format: ExchangeFormat,
        prompt: str | None,
        tags: Sequence[str],
        allow_loss: bool,
    ) -> None:
        self._client = client
        self._format: ExchangeFormat = format
        self._prompt, self._tags, self._allow_loss = prompt, list(tags), allow_loss
        self._newest = self._newest_rubric()

    def read(self, text: bytes) -> tuple[dict[str, Any], Imported]:
        """Parse one rubric. Returns its JSON and what it says; raises ``ValueError``."""
        content = from_json(text, allow_inf_nan=False)
        return content, load(
            content, self._format, prompt=self._prompt, allow_loss=self._allow_loss
        )

    def send(self, content: dict[str, Any]) -> tuple[RubricImported, bool]:
        """Store one rubric. Returns the answer, and whether the service had this rubric already.

        An existing rubric gets the tags that it lacks. Raises the SDK's errors.
        """
        answer = self._client.import_rubric(
            content,
            self._format,
            prompt=self._prompt,
            tags=self._tags,
            allow_loss=self._allow_loss,
        )
        rubric = answer.rubric
        missing = [tag for tag in self._tags if tag not in rubric.tags]
        if missing:
            self._client.change_rubric(rubric.id, tags=[*rubric.tags, *missing])
        existed = bool(missing) or (self._newest is not None and rubric.created_at <= self._newest)
        return answer, existed

    def _newest_rubric(self) -> datetime | None:
        """Return when the newest rubric was created, by the service's clock.

        What is not newer than this was there before the import. ``None`` when there is no rubric,
        or when the key may not read any.
        """
        try:
            page = self._client.rubrics(limit=1).data
        except AuthenticationFailed:
            return None
        return page[0].created_at if page else None


@dataclass(slots=True)
class ImportReport:
    """What happened to the lines of a JSONL file, counted as they are sent."""

    imported: int = 0
    existing: int = 0
    failed: int = 0
    losses: int = 0
    first_loss: str = ""
    prompts: dict[tuple[Message, ...], tuple[int, tuple[Criterion, ...]]] = field(
        default_factory=dict
    )
    """Line number and criteria of each prompt so far."""

    def __str__(self) -> str:
        existing = f" ({self.existing} were there already)" if self.existing else ""
        lost = f"; {self.losses} losses, the first: {self.first_loss}" if self.losses else ""
        return (
            f"{self.imported} rubrics are in the service{existing}, "
            f"{self.failed} lines failed{lost}"
        )


def import_file(
    file: Annotated[Path, typer.Argument(help="JSON: one rubric. JSONL: one rubric a line.")],
    format: FormatOption,
    prompt: Annotated[
        str | None,
        typer.Option(help="The prompt, for formats that hold none (ropd, verifiers)."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Tag for every rubric; may be given several times.")
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option("--allow-loss", help="Drop what the service cannot hold, and list it."),
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Import rubrics from a file.

    Prints the id of a single rubric. Of a JSONL file each line that fails is reported and the
    others are imported. Run it again to go on: a rubric that is there already is not stored twice,
    but gets the tags that it lacks.
    """
    report = ImportReport()
    try:
        tags = _check_tags(tag or [])
        with connect(url) as client:
            importer = RubricImporter(client, format, prompt, tags, allow_loss)
            if file.suffix != ".jsonl":
                _import_one(file, format, importer, tags)
                return
            lines = list(_numbered_lines(file))
            if not lines:
                raise ValueError(f"{file} holds no rubrics")
            with progress_bar("importing", messages()) as progress:
                bar = progress.add_task("rubrics", total=len(lines))
                for number, text in lines:
                    problem = _import_line(number, text, importer, report)
                    if problem:
                        print_error(f"{file}, line {number}: {problem}")
                    progress.advance(bar)
    except (MarkschemeError, ValueError, OSError) as error:
        started = report.imported or report.failed
        fail(
            name_option(error) + (f"\nstopped; run it again to go on. {report}" if started else "")
        )
    except KeyboardInterrupt:
        fail(f"stopped; run the command again to go on. {report}", 130)
    messages().print(str(report), soft_wrap=True)
    if report.failed:
        raise typer.Exit(1)


def print_losses(losses: Sequence[str]) -> None:
    """List what the other side could not hold."""
    console = messages()
    for loss in losses:
        console.print(f"left out: {loss}", soft_wrap=True)


def name_option(error: Exception) -> str:
    """Return the message of an error, with the option of the command instead of the API's field."""
    return str(error).replace("allow_loss", "--allow-loss")


def _import_one(
    file: Path, format: ExchangeFormat, importer: RubricImporter, tags: Sequence[str]
) -> None:
    try:
        content, _ = importer.read(strip_bom(file.read_bytes()))
        answer, existed = importer.send(content)
    except LineError as error:
        raise ValueError(f"{file}, {error}") from None
    except (ValueError, InvalidRequest) as error:
        raise ValueError(f"{file} is not a rubric in the format {format}: {error}") from error
    print_losses(answer.losses)
    if existed:
        tagged = f"; it now has the tags given: {', '.join(tags)}" if tags else ""
        messages().print(f"this rubric was in the service already{tagged}", soft_wrap=True)
    typer.echo(answer.rubric.id)


def _import_line(
    number: int, text: bytes, importer: RubricImporter, report: ImportReport
) -> str | None:
    """Import one line, or return why it cannot be.

    Raises what has nothing to do with the line, such as a service that is away or a wrong key.
    """
    try:
        content, found = importer.read(text)
        before, criteria = report.prompts.get(found.prompt, (number, found.criteria))
        if criteria != found.criteria:
            # Groups get a prompt's newest rubric. Of two in one file that would be the last one by
            # chance, and running the command again would store both anew.
            raise ValueError(
                f"its prompt is that of line {before}, with other criteria: keep one of the two"
            )
        answer, existed = importer.send(content)
        report.prompts[found.prompt] = before, criteria
    except (ValueError, InvalidRequest) as error:
        report.failed += 1
        return name_option(error)
    report.imported += 1
    report.existing += existed
    report.losses += len(answer.losses)
    if answer.losses and not report.first_loss:
        report.first_loss = f"line {number}, {answer.losses[0]}"
    return None


def _numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, as bytes: one that is not UTF-8 fails alone."""
    for number, line in enumerate(read_raw_lines(file), 1):
        if line.strip(WHITESPACE.encode()):
            yield number, line


def _check_tags(tags: list[str]) -> list[str]:
    try:
        return TypeAdapter(list[Tag]).validate_python(tags)
    except ValidationError as error:
        raise ValueError("--tag takes up to 64 letters, digits and . : / _ -") from error
