"""``markscheme rubrics import``: bring the rubrics of a file or data set into the service."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from markscheme.cli.output import Url, connect, fail, messages, print_error, progress_bar
from markscheme.client import DEFAULT_URL, Client
from markscheme.data import Columns, Row, RowError, RowReader, open_source
from markscheme.errors import AuthenticationFailed, InvalidRequest, MarkschemeError
from markscheme.exchange import Imported, load
from markscheme.jsonl import LineError, strip_bom
from markscheme.schema import Prompt, RubricImported, Tag, TeacherEntry, TeacherResponses
from markscheme.vocabulary import ExchangeFormat

FormatOption = Annotated[ExchangeFormat, typer.Option(help="Format of the file.")]


class RubricEntry(BaseModel):
    """A rubric in some format, with the prompt and the teacher responses that stand beside it."""

    model_config = ConfigDict(strict=True, frozen=True)

    rubric: Any
    prompt: Prompt | None = None
    teacher_responses: TeacherResponses | None = None


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

    def read(self, entry: RubricEntry) -> Imported:
        """Return what one rubric says. Raises ``ValueError``."""
        return load(
            entry.rubric,
            self._format,
            prompt=entry.prompt or self._prompt,
            allow_loss=self._allow_loss,
        )

    def send(self, entry: RubricEntry) -> tuple[RubricImported, bool]:
        """Store one rubric, and the responses beside it in the teacher bank.

        Returns the answer, and whether the service had this rubric already. An existing rubric
        gets the tags that it lacks. Raises the SDK's errors.
        """
        answer = self._client.import_rubric(
            entry.rubric,
            self._format,
            prompt=entry.prompt or self._prompt,
            tags=self._tags,
            allow_loss=self._allow_loss,
        )
        rubric = answer.rubric
        if entry.teacher_responses:
            self._client.save_teacher_responses(
                [TeacherEntry(prompt=rubric.prompt, responses=entry.teacher_responses)]
            )
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
    """What happened to the rows, counted as they are sent."""

    imported: int = 0
    existing: int = 0
    failed: int = 0
    losses: int = 0
    first_loss: str = ""
    prompts: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    """Hash of each prompt so far: where it was, and the hash of its criteria."""

    def __str__(self) -> str:
        existing = f" ({self.existing} were there already)" if self.existing else ""
        lost = f"; {self.losses} losses, the first: {self.first_loss}" if self.losses else ""
        return (
            f"{self.imported} rubrics are in the service{existing}, {self.failed} rows failed{lost}"
        )


def import_file(
    data: Annotated[
        str,
        typer.Argument(
            help="A .json file with one rubric; or one rubric a row: a .jsonl, .csv or .parquet "
            "file, a folder of one kind of them, or a split on the hub (org/name:split)."
        ),
    ],
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
    prompt_column: Annotated[
        str | None,
        typer.Option(help="Column of the prompts, for formats that hold none."),
    ] = None,
    teacher_column: Annotated[
        str | None,
        typer.Option(help="Column of responses that go to the teacher bank."),
    ] = None,
    rubric_column: Annotated[
        str | None,
        typer.Option(
            help="Column that holds the rubric, as an object or as JSON. Default: the whole row."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Import rubrics.

    Prints the id of a single rubric. Of several, each row that fails is reported and the others are
    imported. Run it again to go on: a rubric that is there already is not stored twice, but gets
    the tags that it lacks.
    """
    report = ImportReport()
    try:
        tags = _check_tags(tag or [])
        with connect(url) as client:
            importer = RubricImporter(client, format, prompt, tags, allow_loss)
            file = Path(data)
            if file.suffix.lower() == ".json" and not file.is_dir():
                _import_one(file, format, importer, tags)
                return
            source = open_source(data)
            reader = _EntryReader(prompt_column, teacher_column, rubric_column)
            total = source.count()
            if not total:
                raise ValueError(f"{data} holds no rubrics")
            with progress_bar("importing", messages()) as progress:
                bar = progress.add_task("rubrics", total=total)
                for row in source.rows():
                    problem = _import_row(row, source.name, reader, importer, report)
                    if problem:
                        print_error(problem)
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
        content = from_json(strip_bom(file.read_bytes()), allow_inf_nan=False)
        entry = RubricEntry(rubric=content)
        importer.read(entry)
        answer, existed = importer.send(entry)
    except LineError as error:
        raise ValueError(f"{file}, {error}") from None
    except (ValueError, InvalidRequest) as error:
        raise ValueError(f"{file} is not a rubric in the format {format}: {error}") from error
    print_losses(answer.losses)
    if existed:
        tagged = f"; it now has the tags given: {', '.join(tags)}" if tags else ""
        messages().print(f"this rubric was in the service already{tagged}", soft_wrap=True)
    typer.echo(answer.rubric.id)


class _EntryReader:
    """Takes rubric, prompt and teacher responses out of a row."""

    def __init__(self, prompt: str | None, teacher: str | None, rubric: str | None) -> None:
        self._rubric = rubric
        fields = [*(["prompt"] if prompt else []), *(["teacher_responses"] if teacher else [])]
        # The rubric's own columns are not misspelt ones, so nobody is warned.
        self._reader = RowReader(dict[str, Any], fields, Columns(prompt, teacher))

    def read(self, row: Row) -> RubricEntry:
        """Return what a row holds. Raises ``ValueError``."""
        rubric: Any = row.read()
        if self._rubric is not None:
            rubric = rubric.get(self._rubric)
            if isinstance(rubric, str):
                try:
                    rubric = from_json(rubric, allow_inf_nan=False)
                except ValueError as error:
                    raise RowError(f"{row.place}: {self._rubric}: not JSON ({error})") from error
            if rubric is None:
                raise RowError(f"{row.place}: {self._rubric}: is missing")
        return RubricEntry(rubric=rubric, **self._reader.read(row))


def _import_row(
    row: Row, source: str, reader: _EntryReader, importer: RubricImporter, report: ImportReport
) -> str | None:
    """Import one row, or return why it cannot be.

    Raises what has nothing to do with the row, such as a service that is away or a wrong key.
    """
    place = row.place.removeprefix(f"{source}, ")
    try:
        entry = reader.read(row)
        found = importer.read(entry)
        prompt = _digest([message.model_dump(mode="json") for message in found.prompt])
        own = _digest([criterion.model_dump(mode="json") for criterion in found.criteria])
        before, criteria = report.prompts.get(prompt, (place, own))
        if criteria != own:
            # Groups get a prompt's newest rubric. Of two in one file that would be the last one by
            # chance, and running the command again would store both anew.
            raise ValueError(
                f"its prompt is that of {before}, with other criteria: keep one of the two"
            )
        answer, existed = importer.send(entry)
        report.prompts[prompt] = before, criteria
    except RowError as error:
        report.failed += 1
        return str(error)
    except (ValueError, InvalidRequest) as error:
        report.failed += 1
        return f"{row.place}: {name_option(error)}"
    report.imported += 1
    report.existing += existed
    report.losses += len(answer.losses)
    if answer.losses and not report.first_loss:
        report.first_loss = f"{place}, {answer.losses[0]}"
    return None


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _check_tags(tags: list[str]) -> list[str]:
    try:
        return TypeAdapter(list[Tag]).validate_python(tags)
    except ValidationError as error:
        raise ValueError("--tag takes up to 64 letters, digits and . : / _ -") from error
