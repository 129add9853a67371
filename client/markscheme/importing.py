"""Bring rubrics into the service row by row, and their reference answers into the teacher bank."""

import asyncio
import hashlib
import json
import re
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from markscheme.client import AsyncClient
from markscheme.data import Columns, Row, RowError, RowReader, as_json
from markscheme.data.files import Json
from markscheme.errors import AuthenticationFailed, InvalidRequest
from markscheme.exchange import Imported, Malformed, detect_format, load, row_id
from markscheme.exchange.promptfoo import is_config, placed_rows
from markscheme.jsonl import strip_bom
from markscheme.jsonl_rows import describe_error
from markscheme.schema import Message, Prompt, RubricImported, TeacherEntry, TeacherResponses
from markscheme.vocabulary import ExchangeFormat, MapField

MAX_RESPONSES_PER_ENTRY = 16
"""The wire format's limit."""
ENTRIES_PER_CALL = 64
"""Prompts whose reference answers are sent together."""
CONCURRENCY = 8
"""Rows that are sent at a time; the service stores what arrives together in one transaction."""
ROW_RETRIES = 6
"""Retries for a row: it waits for its team's limit, and for a service that restarts."""
_YAML_BOOL, _YAML_TIMESTAMP = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
_META_EVAL: ExchangeFormat = "healthbench-meta-eval"


class RubricRow(Protocol):
    """A row of any source: where it is, for messages, and how its content is read."""

    @property
    def place(self) -> str:
        """The place, such as `rubrics.jsonl, line 3`."""

    @property
    def load(self) -> Callable[[], Any]:
        """Returns the content. Raises `ValueError` if this row alone cannot be read."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of a file."""

    place: str
    load: Callable[[], Any]


@dataclass(slots=True)
class ImportReport:
    """What happened to the rows, counted as they are sent.

    `references` counts reference answers that the teacher bank has now, by their source;
    `known_references` those of them that it had before. `versions` counts rows whose prompt is that
    of an earlier row, with other criteria.
    """

    imported: int = 0
    existing: int = 0
    failed: int = 0
    losses: int = 0
    first_loss: str = ""
    notes: int = 0
    first_note: str = ""
    versions: int = 0
    first_version: str = ""
    references: dict[str, int] = field(default_factory=dict)
    known_references: int = 0
    prompts: dict[bytes, tuple[str, bytes, bytes]] = field(default_factory=dict)
    """Hash of each prompt so far: where it was, and the hashes of its criteria and metadata."""

    def __str__(self) -> str:
        existing = f" ({self.existing} were there already)" if self.existing else ""
        said = f"{self.imported} rubrics are in the service{existing}, {self.failed} rows failed"
        if self.references:
            sources = ", ".join(f"{count} of {name}" for name, count in self.references.items())
            known = f"; {self.known_references} were there already" if self.known_references else ""
            total = sum(self.references.values())
            said += f"; {total} reference answers are in the teacher bank ({sources}{known})"
        if self.versions:
            said += (
                f"; {self.versions} rows have other criteria for the prompt of a row before: each "
                "is a version of that prompt's rubric, and groups get the newest; the first: "
                f"{self.first_version}"
            )
        if self.losses:
            said += f"; {self.losses} losses, the first: {self.first_loss}"
        if self.notes:
            said += f"; {self.notes} notes, the first: {self.first_note}"
        return said


class RubricEntry(BaseModel):
    """A rubric, with the prompt and the teacher responses that stand beside it in its row."""

    model_config = ConfigDict(strict=True, frozen=True)

    rubric: Any
    prompt: Prompt | None = None
    teacher_responses: TeacherResponses | None = None


class RubricColumns:
    """Takes rubric, prompt and teacher responses out of the columns of a row.

    Args:
        prompt: Column of the prompt, for formats that hold none.
        teacher: Column of responses for the teacher bank.
        rubric: Column of the rubric, an object or JSON; `None`: the whole row.
    """

    def __init__(
        self, prompt: str | None = None, teacher: str | None = None, rubric: str | None = None
    ) -> None:
        self._rubric = rubric
        fields = [*(["prompt"] if prompt else []), *(["teacher_responses"] if teacher else [])]
        self._reader = RowReader(dict[str, Any], fields, Columns(prompt, teacher))
        self._beside = {column for column in (prompt, teacher) if column}

    def read(self, row: RubricRow) -> RubricEntry:
        """Return what a row holds. Raises `ValueError`."""
        content = row.load()
        if isinstance(row, Row) and row.untyped and isinstance(content, dict):
            content = {name: _decoded_cell(cell) for name, cell in content.items()}
        if not self._beside and self._rubric is None:
            return RubricEntry(rubric=content)
        names = row.columns if isinstance(row, Row) else ()
        whole = Row("", "", lambda: content, columns=names)
        try:
            beside = self._reader.read(whole)
            found = self._read_rubric(whole.read())
            return RubricEntry.model_validate({"rubric": found, **beside})
        except RowError as error:
            raise ValueError(str(error).removeprefix(": ")) from error
        except ValidationError as error:
            raise ValueError(describe_error(error, beside)) from error

    def check_named(self, source: str) -> None:
        """Raise `SourceError` if no row that was read has a column that the user named."""
        self._reader.check_named(source)

    def _read_rubric(self, content: dict[str, Any]) -> Any:
        if self._rubric is None:
            return {name: each for name, each in content.items() if name not in self._beside}
        found = content.get(self._rubric)
        if found is None:
            raise ValueError(f"{self._rubric}: is missing")
        if not isinstance(found, str):
            return found
        try:
            return from_json(found, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"{self._rubric}: not JSON ({error})") from error


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """What a row says, and the digests of its prompt, its criteria and its metadata."""

    content: Any
    given: Prompt | None
    teacher_responses: TeacherResponses | None
    found: Imported
    prompt: bytes
    criteria: bytes
    metadata: bytes


@dataclass(frozen=True, slots=True)
class _RowImport:
    """A row under way; of one that cannot be read, the reason."""

    row: RubricRow
    read: _ReadRow | None = None
    task: "asyncio.Task[tuple[RubricImported, bool]] | None" = None
    problem: str = ""


class RubricImporter:
    """Imports rubrics with the same prompt, tags and options.

    Await `start` first.

    Args:
        client: The service.
        format: Their format; None: detected row by row.
        mapping: Where each has its parts, for the format `mapped`.
        prompt: The prompt, for contents that hold none.
        tags: Tags for every rubric.
        allow_loss: Whether to drop what the service cannot hold.
        references: Whether reference answers go to the teacher bank.
        teacher_model: Whose the reference answers are; None: what the format says.
        columns: Where rows have their parts; default: a row is a rubric.
    """

    def __init__(
        self,
        client: AsyncClient,
        format: ExchangeFormat | None,
        *,
        mapping: dict[MapField, str] | None = None,
        prompt: str | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
        references: bool = True,
        teacher_model: str | None = None,
        columns: RubricColumns | None = None,
    ) -> None:
        self._client, self._patient = client, client.with_options(max_retries=ROW_RETRIES)
        self._columns = columns or RubricColumns()
        self._format = format
        self._mapping = mapping
        self._prompt, self._tags, self._allow_loss = prompt, list(tags), allow_loss
        self._references, self._teacher_model = references, teacher_model
        self._newest: datetime | None = None
        self._waiting: list[tuple[str, TeacherEntry]] = []
        self._detected: ExchangeFormat | None = None
        self.report = ImportReport()

    async def start(self) -> None:
        """Ask when the newest rubric was created: what is not newer was there before the import."""
        try:
            page = (await self._client.rubrics(limit=1)).data
        except AuthenticationFailed:
            return  # the key may not read rubrics: then all count as new
        self._newest = page[0].created_at if page else None

    def format_of(self, content: Any) -> ExchangeFormat:
        """Return the format given, or that the content's fields tell. Raises ``ValueError``.

        A content whose fields tell none is taken for one of the format before it: then what is said
        of it names the field at fault.
        """
        if self._format is not None:
            return self._format
        try:
            self._detected = detect_format(content)
        except Malformed:
            if self._detected is None:
                raise
        return self._detected

    def read(self, content: Any, prompt: Prompt | None = None) -> Imported:
        """Return what one rubric says. Raises ``ValueError``."""
        return load(
            content,
            self.format_of(content),
            prompt=prompt if prompt is not None else self._prompt,
            allow_loss=self._allow_loss,
            mapping=self._mapping,
        )

    async def send(self, content: Any, prompt: Prompt | None = None) -> tuple[RubricImported, bool]:
        """Store one rubric. Returns the answer, and whether the service had this rubric already.

        An existing rubric gets the tags that it lacks. Raises the SDK's errors.
        """
        answer = await self._patient.import_rubric(
            content,
            self.format_of(content),
            prompt=prompt if prompt is not None else self._prompt,
            tags=self._tags,
            allow_loss=self._allow_loss,
            mapping=self._mapping,
        )
        rubric = answer.rubric
        missing = [tag for tag in self._tags if tag not in rubric.tags]
        if missing:
            await self._patient.change_rubric(rubric.id, tags=[*rubric.tags, *missing])
        return answer, bool(missing) or (
            self._newest is not None and rubric.created_at <= self._newest
        )

    def add_references(
        self, found: Imported, place: str, beside: TeacherResponses | None = None
    ) -> None:
        """Put a row's reference answers, and those beside its rubric, in the queue for the bank."""
        if not self._references:
            return
        self._waiting.extend((place, entry) for entry in _entries(found, self._teacher_model))
        if beside:
            entry = TeacherEntry(
                prompt=list(found.prompt), responses=beside, model=self._teacher_model
            )
            self._waiting.append((place, entry))

    async def import_rows(
        self,
        rows: Iterable[RubricRow],
        *,
        on_problem: Callable[[str], None],
        on_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Import the rows of a source; what fails is told, and the others are imported.

        Several rows are sent at a time. They are counted and told of in their order, and rows of
        one prompt are sent one after the other. Cancelling it leaves what was stored.

        Args:
            rows: The rows. Those of HealthBench's meta-evaluation are read to the end first, as
                the rows of a prompt become one rubric.
            on_problem: Is told of a row that fails, with its place.
            on_row: Is called after each row.

        Raises:
            MarkschemeError: Not because of a row: the service is away, or the key is wrong.
        """
        under_way: deque[_RowImport] = deque()

        async def finish() -> None:
            sending = under_way.popleft()
            if problem := await self._finish(sending):
                self.report.failed += 1
                on_problem(f"{sending.row.place}: {problem}")
            if len(self._waiting) >= ENTRIES_PER_CALL:
                await self.store_references(on_problem)
            on_row()

        try:
            for row in self._grouped(rows, on_problem, on_row):
                # The oldest one first, so that rows are counted and told of in their order.
                if len(under_way) == CONCURRENCY:
                    await finish()
                under_way.append(self._begin(row, under_way))
            while under_way:
                await finish()
        finally:
            tasks = [sending.task for sending in under_way if sending.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.store_references(on_problem)

    async def store_references(self, on_problem: Callable[[str], None]) -> None:
        """Store the reference answers that wait in the teacher bank."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            await self._save([entry for _, entry in waiting])
        except InvalidRequest:
            # One of them is at fault: find out which.
            for place, entry in waiting:
                try:
                    await self._save([entry])
                except InvalidRequest as error:
                    self.report.failed += 1
                    on_problem(f"{place}: its reference answers: {error.message}")

    async def _save(self, entries: list[TeacherEntry]) -> None:
        change = await self._patient.save_teacher_responses(entries)
        self.report.known_references += change.duplicates
        for entry in entries:
            name = entry.model or "an unknown source"
            self.report.references[name] = self.report.references.get(name, 0) + len(
                entry.responses
            )

    def _begin(self, row: RubricRow, under_way: Iterable[_RowImport]) -> _RowImport:
        """Read a row and begin to send it, after a row under way that has the same prompt."""
        content: Any = None
        try:
            entry = self._columns.read(row)
            content = entry.rubric
            found = self.read(content, entry.prompt)
            read = _ReadRow(
                content,
                entry.prompt,
                entry.teacher_responses,
                found,
                _digest([message.model_dump(mode="json") for message in found.prompt]),
                _digest([c.model_dump(mode="json", exclude={"metadata"}) for c in found.criteria]),
                _digest([found.metadata, *(c.metadata for c in found.criteria)]),
            )
        except RecursionError:
            return _RowImport(row, problem="nested too deeply")
        except ValueError as error:
            return _RowImport(row, problem=describe(error) + self._id_of(content))
        # Versions of a prompt's rubric are numbered in the order of the rows.
        before = [
            each.task
            for each in under_way
            if each.read is not None and each.task is not None and each.read.prompt == read.prompt
        ]

        async def send() -> tuple[RubricImported, bool]:
            if before:
                # `wait` raises nothing: a row that fails must not fail the next one.
                await asyncio.wait(before)
            return await self.send(content, entry.prompt)

        return _RowImport(row, read, asyncio.create_task(send()))

    async def _finish(self, sending: _RowImport) -> str:
        """Wait for a row and count it; return why it could not be imported, or an empty text."""
        if sending.task is None or sending.read is None:
            return sending.problem
        report, read, place = self.report, sending.read, sending.row.place
        try:
            answer, existed = await sending.task
        except RecursionError:
            return "nested too deeply"
        except (ValueError, InvalidRequest) as error:
            return describe(error) + self._id_of(read.content)
        self.add_references(read.found, place, read.teacher_responses)
        report.imported += 1
        report.existing += existed
        report.losses += len(answer.losses)
        notes = list(answer.notes)
        before, criteria, metadata = report.prompts.get(
            read.prompt, (place, read.criteria, read.metadata)
        )
        report.prompts[read.prompt] = place, read.criteria, read.metadata
        if criteria != read.criteria:
            report.versions += 1
            if not report.first_version:
                report.first_version = f"{place}, version {answer.rubric.version}, after {before}"
        elif metadata != read.metadata:
            notes.append(f"its rubric is that of {before}; its other fields take their place")
        report.notes += len(notes)
        if answer.losses and not report.first_loss:
            report.first_loss = f"{place}, {answer.losses[0]}"
        if notes and not report.first_note:
            report.first_note = f"{place}, {notes[0]}"
        return ""

    def _id_of(self, content: Any) -> str:
        """Return the row's own name in brackets, where it has one."""
        try:
            own = row_id(content, self.format_of(content), self._mapping)
        except ValueError:
            own = None
        return "" if own is None else f" (id {own})"

    def _grouped(
        self,
        rows: Iterable[RubricRow],
        on_problem: Callable[[str], None],
        on_row: Callable[[], None],
    ) -> Iterator[RubricRow]:
        """Yield the rows; those of the meta-evaluation by prompt, without those that are wrong."""
        iterator = iter(rows)
        first = next(iterator, None)
        if first is None:
            return
        rows = chain([first], iterator)
        try:
            # The first row tells: rows of the meta-evaluation have to be put together.
            together = self.format_of(first.load()) == _META_EVAL
        except (ValueError, RecursionError):
            together = False
        if not together:
            yield from rows
            return
        groups: dict[bytes, tuple[str, list[Any]]] = {}
        for row in rows:
            try:
                content = row.load()
                found = load(content, _META_EVAL)
            except (ValueError, RecursionError) as error:
                self.report.failed += 1
                on_problem(f"{row.place}: {describe(error)}")
                on_row()
                continue
            key = _digest([message.model_dump(mode="json") for message in found.prompt])
            groups.setdefault(key, (row.place, []))[1].append(content)
        while groups:
            place, contents = groups.pop(next(iter(groups)))
            yield _row(place, contents)


def read_rubric_file(path: Path) -> list[FileRow]:
    """Return the rubrics of a file that is read whole: JSON, TOML or YAML.

    A list of rows, or a promptfoo configuration, makes several. Raises ``ValueError`` and
    ``OSError``.
    """
    suffix = path.suffix.lower()
    data = strip_bom(path.read_bytes())
    if suffix == ".toml":
        content: Any = as_json(tomllib.loads(data.decode()))
    elif suffix in (".yaml", ".yml"):
        content = _from_yaml(data)
    else:
        try:
            content = from_json(data, allow_inf_nan=False)
        except ValueError:
            # Some `.json` files hold one object after the other.
            contents = _several_objects(path)
            if len(contents) < 2:
                raise
            return _file_rows(path, "row", contents)
    if is_config(content):
        return [_row(f"{path}, {place}", row) for place, row in placed_rows(content)]
    if isinstance(content, list) and not _is_one_rubric(content):
        return _file_rows(path, "item", content)
    return [_row(str(path), content)]


def _several_objects(path: Path) -> list[Any]:
    """Return the objects that a file holds one after the other; none if the first is no JSON."""
    contents: list[Any] = []
    try:
        contents.extend(row.load() for row in Json(path).rows())
    except RowError:
        if contents:
            raise
    return contents


def _from_yaml(data: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError(
            "YAML needs the package pyyaml (pip install pyyaml); or save the file as JSON"
        ) from None

    class Loader(yaml.SafeLoader):
        """Reads plain words as YAML 1.2 does: `no` is a text, and so is a date."""

        yaml_implicit_resolvers = {
            first: [each for each in known if each[0] not in (_YAML_BOOL, _YAML_TIMESTAMP)]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(
        _YAML_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    try:
        return yaml.load(data, Loader)
    except yaml.YAMLError as error:
        said, _, _ = str(error).partition("\n")
        raise ValueError(f"not YAML ({said})") from None


def _is_one_rubric(content: list[Any]) -> bool:
    try:
        return detect_format(content) == "verifiers"
    except ValueError:
        return False


def _file_rows(path: Path, word: str, contents: Sequence[Any]) -> list[FileRow]:
    return [_row(f"{path}, {word} {number}", content) for number, content in enumerate(contents, 1)]


def _row(place: str, content: Any) -> FileRow:
    return FileRow(place, lambda: content)


def describe(error: Exception) -> str:
    """Return what is wrong with a row, with options of the command instead of the API's fields."""
    text = error.message if isinstance(error, InvalidRequest) else str(error)
    if getattr(error, "param", None) == "prompt":
        text += " (--prompt)"
    return text.replace("allow_loss", "--allow-loss")


def _decoded_cell(cell: Any) -> Any:
    """Return the list or object that a cell of text holds as JSON, else the cell."""
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        return from_json(cell, allow_inf_nan=False)
    except ValueError:
        return cell


def _entries(found: Imported, model: str | None) -> Iterator[TeacherEntry]:
    prompt: list[Message] = list(found.prompt)
    by_source: dict[str, list[str]] = {}
    for reference in found.references:
        by_source.setdefault(model or reference.source, []).append(reference.text)
    for source, texts in by_source.items():
        for start in range(0, len(texts), MAX_RESPONSES_PER_ENTRY):
            yield TeacherEntry(
                prompt=prompt,
                responses=list(texts[start : start + MAX_RESPONSES_PER_ENTRY]),
                model=source,
            )


def _digest(value: object) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
