"""``markscheme rubrics import``: bring the rubrics of a file into the service."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from markscheme.cli.output import (
    Url,
    connect_async,
    describe_error,
    fail,
    messages,
    print_error,
    progress_bar,
)
from markscheme.client import DEFAULT_URL, AsyncClient
from markscheme.data import SourceError, open_source
from markscheme.errors import InvalidRequest, MarkschemeError
from markscheme.exchange.profiles import mapped_profile
from markscheme.importing import (
    FileRow,
    ImportReport,
    RubricColumns,
    RubricImporter,
    RubricRow,
    describe,
    read_rubric_file,
)
from markscheme.schema import Tag
from markscheme.vocabulary import EXCHANGE_FORMATS, MAP_FIELDS, ExchangeFormat, MapField

_FORMATS = ", ".join(EXCHANGE_FORMATS)
FormatOption = Annotated[
    ExchangeFormat,
    typer.Option(metavar="NAME", help=f"Format of the file: {_FORMATS}."),
]
WHOLE_FILES = (".json", ".toml", ".yaml", ".yml")
"""Files that are read whole; all others are read row by row."""
SHOWN_PROBLEMS = 100
"""Rows that fail of which the reason is printed; the others are counted."""


def import_file(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="A .json, .toml or .yaml file: one rubric, a list of them, or the tests of "
            "promptfoo. Or one rubric a row: a .jsonl, .csv or .parquet file, a folder of one kind "
            "of them, or a split on the hub (org/name:split).",
        ),
    ],
    format: Annotated[
        ExchangeFormat | None,
        typer.Option(
            metavar="NAME",
            help=f"Format of the rubrics: {_FORMATS}. Default: detected from their fields.",
        ),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=PATH",
            help="Where rows of a format of your own hold each part: prompt, criteria, and "
            "within a criterion text and points; also reference and id. Several: prompt=question "
            "criteria=checklist text=item points=weight.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The prompt, for rubrics that hold none (ropd, verifiers)."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Tag for every rubric; may be given several times.")
    ] = None,
    references: Annotated[
        bool,
        typer.Option(help="Whether reference answers go to the teacher bank."),
    ] = True,
    teacher_model: Annotated[
        str | None,
        typer.Option(help="Model that wrote the reference answers. Default: as the format says."),
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option("--allow-loss", help="Drop what the service cannot hold, and list it."),
    ] = False,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="Column of the prompts, for rubrics that hold none."),
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
    """Import rubrics from a file or a data set.

    Fields that a rubric has no place for are kept in its metadata, and reference answers go to the
    teacher bank. Prints the id of a single rubric. Of several, each row that fails is reported and
    the others are imported. Run it again to continue: a rubric that is there already is not stored
    twice, but gets the tags that it lacks.
    """
    importer: RubricImporter | None = None
    columns = RubricColumns(prompt_column, teacher_column, rubric_column)
    try:
        if map and format not in (None, "mapped"):
            raise ValueError(f"--map describes a format of your own: leave out --format {format}")
        if not map and format == "mapped":
            raise ValueError("--format mapped needs --map, such as --map prompt=question")
        name, mapping = _name_and_mapping(arguments, map or [])
        tags = _check_tags(tag or [])
        path = Path(name)
        whole = path.suffix.lower() in WHOLE_FILES and not path.is_dir()
        single = read_rubric_file(path) if whole else []
        source = None if whole else open_source(name)
        client = connect_async(url)
        importer = RubricImporter(
            client,
            "mapped" if mapping is not None else format,
            mapping=mapping,
            prompt=prompt,
            tags=tags,
            allow_loss=allow_loss,
            references=references,
            teacher_model=teacher_model,
            columns=columns,
        )
        if len(single) == 1 and not (prompt_column or teacher_column or rubric_column):
            asyncio.run(_closing(client, _import_one(path, single[0], importer, tags)))
            return
        problems = _Problems()
        with progress_bar("importing", messages()) as progress:
            total = len(single) if source is None else source.count()
            if not total:
                raise ValueError(f"{name} holds no rubrics")
            bar = progress.add_task("rubrics", total=total)
            rows = single if source is None else source.rows()
            work = _import_all(importer, rows, problems, lambda: progress.advance(bar))
            asyncio.run(_closing(client, work))
        problems.finish()
    except (MarkschemeError, ValueError, OSError) as error:
        started = importer is not None and (importer.report.imported or importer.report.failed)
        stopped = f"\nstopped; run it again to continue. {importer.report}" if started else ""  # type: ignore[union-attr]
        fail(_name_file(arguments, error) + stopped)
    except KeyboardInterrupt:
        fail(
            "stopped; run the command again to go on."
            + (f" {importer.report}" if importer is not None else ""),
            130,
        )
    report = importer.report
    messages().print(str(report), soft_wrap=True)
    missing = _missing_parts(name, columns, mapping, report, references) if report.imported else []
    for problem in missing:
        print_error(problem)
    if report.failed or missing:
        raise typer.Exit(1)


def print_losses(losses: Sequence[str]) -> None:
    """List what the other side could not hold."""
    console = messages()
    for loss in losses:
        console.print(f"left out: {loss}", soft_wrap=True)


def name_option(error: Exception) -> str:
    """Return the message of an error, with the option of the command instead of the API's field."""
    return describe_error(error).replace("allow_loss", "--allow-loss")


def _missing_parts(
    name: str,
    columns: RubricColumns,
    mapping: Mapping[MapField, str] | None,
    report: ImportReport,
    references: bool,
) -> list[str]:
    """Return what the user named and no row has, one sentence each."""
    missing = []
    try:
        columns.check_named(name)
    except SourceError as error:
        missing.append(str(error))
    path = (mapping or {}).get("reference")
    if path is not None and references and not report.references:
        missing.append(f"{name}: no row has a reference answer at {path!r}, which --map names")
    return missing


class _Problems:
    """Prints why rows fail; of very many, the first."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, problem: str) -> None:
        self._count += 1
        if self._count <= SHOWN_PROBLEMS:
            print_error(_with_advice(problem))

    def finish(self) -> None:
        """Say how many were not printed."""
        if self._count > SHOWN_PROBLEMS:
            print_error(f"and {self._count - SHOWN_PROBLEMS} more rows failed")


async def _closing(client: AsyncClient, work: Awaitable[None]) -> None:
    async with client:
        await work


async def _import_all(
    importer: RubricImporter,
    rows: Iterable[RubricRow],
    on_problem: Callable[[str], None],
    on_row: Callable[[], None],
) -> None:
    await importer.start()
    await importer.import_rows(rows, on_problem=on_problem, on_row=on_row)


async def _import_one(
    path: Path, row: FileRow, importer: RubricImporter, tags: Sequence[str]
) -> None:
    try:
        content = row.load()
        format = importer.format_of(content)
        found = importer.read(content)
        await importer.start()
        answer, existed = await importer.send(content)
    except (ValueError, InvalidRequest) as error:
        raise ValueError(f"{path}: {_with_advice(describe(error))}") from error
    importer.add_references(found, row.place)
    problems: list[str] = []
    await importer.store_references(problems.append)
    for problem in problems:
        print_error(problem)
    print_losses(answer.losses)
    console = messages()
    for note in answer.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if existed:
        tagged = f"; it now has the tags given: {', '.join(tags)}" if tags else ""
        console.print(f"this rubric was in the service already{tagged}", soft_wrap=True)
    if importer.report.references:
        console.print(
            f"read as {format}; {_count_references(importer)} in the teacher bank", soft_wrap=True
        )
    typer.echo(answer.rubric.id)
    if problems:
        raise typer.Exit(1)


def _count_references(importer: RubricImporter) -> str:
    counts = importer.report.references
    total = sum(counts.values())
    answers = "1 reference answer is" if total == 1 else f"{total} reference answers are"
    return f"{answers} ({', '.join(f'{count} of {name}' for name, count in counts.items())})"


def _with_advice(problem: str) -> str:
    if "none of the known formats looks like this" in problem:
        return f"{problem}: say which it is with --format, or where its parts are with --map"
    return problem


def _name_file(arguments: Sequence[str], error: Exception) -> str:
    text = name_option(error)
    named = any(argument in text for argument in arguments)
    known = isinstance(error, MarkschemeError | OSError) or named or text.startswith("--")
    return text if known else f"{' '.join(arguments)}: {text}"


def _name_and_mapping(
    arguments: Sequence[str], maps: Sequence[str]
) -> tuple[str, dict[MapField, str] | None]:
    """Return the name of the data, and the mapping if there is one.

    Parts of the mapping may stand behind one ``--map`` as separate arguments. Raises
    ``ValueError``.
    """
    names = "|".join(MAP_FIELDS)
    # Split before PART= only: a path may hold commas and spaces.
    parts = [each for text in maps for each in re.split(r"[,\s]+(?=\w+=)", text.strip())]
    files: list[str] = []
    for argument in arguments:
        is_part = bool(maps) and re.match(rf"(?:{names})=", argument) is not None
        # A file that exists is meant as one, even if its name looks like a part.
        (parts if is_part and not Path(argument).exists() else files).append(argument)
    if len(files) != 1:
        raise ValueError(f"give one file, not {len(files)}: {', '.join(files) or 'none'}")
    if not maps:
        return files[0], None
    mapping: dict[MapField, str] = {}
    for part in parts:
        name, equals, path = part.partition("=")
        field = next((each for each in MAP_FIELDS if each == name.strip()), None)
        if field is None or not equals or not path.strip():
            raise ValueError(
                f"--map {part!r} is not PART=PATH; the parts are {', '.join(MAP_FIELDS)}"
            )
        if field in mapping and field != "reference":
            raise ValueError(f"--map says twice where the {field} is")
        before = f"{mapping[field]}|" if field in mapping else ""
        mapping[field] = before + path.strip()
    try:
        mapped_profile(mapping)
    except ValueError as error:
        raise ValueError(f"--map: {error}") from None
    return files[0], mapping


def _check_tags(tags: list[str]) -> list[str]:
    try:
        return TypeAdapter(list[Tag]).validate_python(tags)
    except ValidationError as error:
        raise ValueError("--tag takes up to 64 letters, digits and . : / _ -") from error
