"""Turn rows into models: which column holds what, and which row and column are at fault."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from markscheme.data.base import DataSource, Row, RowError, SourceError
from markscheme.jsonl import parse
from markscheme.jsonl_rows import check_unicode, describe_error
from markscheme.messages import plain_prompt

T = TypeVar("T")

FIELDS = {
    "prompt": "prompt",
    "teacher": "teacher_responses",
    "student": "student_responses",
    "rubric": "rubric_id",
}
"""The field that each of the options `--prompt-column` … names a column for."""
LISTS = ("teacher_responses", "student_responses", "rollouts")
KNOWN = frozenset({*FIELDS.values(), "id", "rollouts", "teacher_model"})
"""Columns that some command reads: never taken for a misspelt one."""
SIMILAR = 0.8
"""Similarity (difflib's ratio) from which a column is taken for a misspelt one."""
MAX_SHOWN = 12
"""Columns that a message lists."""
MAX_LAYOUTS = 1000
"""Sets of columns, and columns of one row, that are checked for misspelt ones."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that hold prompt, responses and rubric id; `None`: named as the field is.

    `option` spells the options for messages: `--{}-column` on the command line.
    """

    prompt: str | None = None
    teacher: str | None = None
    student: str | None = None
    rubric: str | None = None
    option: str = "--{}-column"

    def named(self) -> dict[str, str]:
        """Return the columns that were named, by field."""
        return {
            field: column
            for name, field in FIELDS.items()
            if (column := getattr(self, name)) is not None
        }

    def option_of(self, field: str) -> str | None:
        """Return the option that names the column of a field, if there is one."""
        return next(
            (self.option.format(name) for name, each in FIELDS.items() if each == field), None
        )


class RowReader(Generic[T]):
    """Reads the rows of one source into models. `columns` are those that it reads.

    Args:
        model: Makes the model from the row's fields; its errors name fields.
        fields: The fields to read. Other columns are ignored.
        columns: Where they are.
        warn: Called once for each unread column that looks like a misspelt one.
        hints: What else to do where a field is missing, by field.
    """

    def __init__(
        self,
        model: Callable[[dict[str, Any]], T],
        fields: Sequence[str],
        columns: Columns | None = None,
        warn: Callable[[str], None] = lambda message: None,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self._model, self._warn, self._hints = model, warn, hints or {}
        self._columns = columns or Columns()
        self._named = {f: c for f, c in self._columns.named().items() if f in fields}
        self._read = {field: self._named.get(field, field) for field in fields}
        self.columns = frozenset(self._read.values())
        self._layouts: set[frozenset[str]] = set()
        self._found: set[str] = set()
        self._first: Sequence[str] = ()
        self._warned: set[str] = set()

    def read(self, row: Row) -> T:
        """Return the model of a row. Raises `RowError` that names the row and the column."""
        content = row.read()
        filled = {name: value for name, value in content.items() if value is not None}
        names = row.columns or tuple(content)
        self._check_layout(row, names, filled)
        fields: dict[str, Any] = {}
        try:
            for field, column in self._read.items():
                if column in filled:
                    value = self._value(field, filled[column], row)
                    if value is not None:
                        # What a model wrote is made visible instead, by the wire's own models.
                        checked = value if field in LISTS else check_unicode(value, column)
                        fields[field] = checked
            return self._model(fields)
        except ValidationError as error:
            raise RowError(f"{row.place}: {self._describe(error, fields, names)}") from error
        except ValueError as error:
            raise RowError(f"{row.place}: {error}") from error
        except RecursionError as error:
            raise RowError(f"{row.place}: nested too deeply") from error

    def check_named(self, source: str) -> None:
        """Raise `SourceError` if no row that was read has a column that the user named.

        Args:
            source: The name of the data, for the message.
        """
        for field, column in self._named.items():
            if column not in self._found:
                raise SourceError(
                    f"{source} has no column {column!r}, which "
                    f"{self._columns.option_of(field)} names; its first row has "
                    f"{_listed(self._first)}"
                )

    def _value(self, field: str, value: Any, row: Row) -> Any:
        column = self._read[field]
        if field == "prompt":
            return plain_prompt(_decoded_prompt(value), column)
        if field == "id" and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if field == "rubric_id" and value == "":
            return None
        if field not in LISTS:
            return value
        if isinstance(value, str):
            return self._list_of_text(field, value, row)
        # A named column may hold one response as messages.
        if field in self._named and _are_messages(value):
            return [value]
        return value

    def _list_of_text(self, field: str, value: str, row: Row) -> Any:
        """Return a text as a list: JSON where the cell can hold no list, else one response.

        An empty text in a named column is no response.
        """
        named = field in self._named
        if not value and named:
            return None  # as tables without null have it
        if (row.untyped or not named) and isinstance(decoded := _json(value), list):
            return decoded
        return [value] if row.untyped or named else value

    def _describe(
        self, error: ValidationError, fields: Mapping[str, Any], columns: Sequence[str]
    ) -> str:
        message = describe_error(error, fields)
        field = re.match(r"\w*", message)
        name = field[0] if field else ""
        if name not in self._read:
            return message
        text = self._read[name] + message[len(name) :]
        option = self._columns.option_of(name)
        if name not in fields and option is not None:
            text += f"; the row has {_listed(columns)}: name its column with {option}"
            if name in self._hints:
                text += f", {self._hints[name]}"
        return text

    def _check_layout(self, row: Row, columns: Sequence[str], filled: Mapping[str, Any]) -> None:
        """Warn of columns that are nearly named as one that this row lacks."""
        self._first = self._first or columns
        self._found.update(column for column in self._named.values() if column in columns)
        # A table's unread columns are not decoded: whether they are null here is not known.
        unread = frozenset(row.columns or filled) - self.columns
        layout = unread.union(filled)
        if layout in self._layouts or max(len(self._layouts), len(unread)) >= MAX_LAYOUTS:
            return
        self._layouts.add(layout)
        lacking = {_plain_name(column): column for column in self.columns - filled.keys()}
        for column in sorted(unread - KNOWN - self._warned):
            near = difflib.get_close_matches(_plain_name(column), lacking, n=1, cutoff=SIMILAR)
            if near:
                self._warned.add(column)
                self._warn(
                    f"{row.place}: the column {column!r} is not read; did you mean "
                    f"{lacking[near[0]]!r}?"
                )


class Records(Generic[T]):
    """The rows of a source as models, read anew at each iteration.

    Args:
        source: Where they are.
        reader: Makes the models.
    """

    def __init__(self, source: DataSource, reader: RowReader[T]) -> None:
        self.source, self._reader = source, reader

    def __iter__(self) -> Iterator[T]:
        """Yield the models. Raises `SourceError`."""
        return (record for _, record in self.with_rows())

    def with_rows(self) -> Iterator[tuple[Row, T]]:
        """Yield each row with its model. Raises `SourceError`."""
        for row in self.source.rows(self._reader.columns):
            yield row, self._reader.read(row)

    def check(self, visit: Callable[[Row, T], None] = lambda row, record: None) -> int:
        """Read every row once and return their number.

        A command calls this before it begins, so that a bad row is found before anything is paid
        for. Raises `SourceError`, also if there is no row.

        Args:
            visit: Called with each row and its model.
        """
        count = 0
        for row, record in self.with_rows():
            visit(row, record)
            count += 1
        if not count:
            raise SourceError(f"{self.source.name} holds no rows")
        self._reader.check_named(self.source.name)
        return count


def _plain_name(column: str) -> str:
    """Return a column's name in lower case, its words joined by underscores."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return re.sub(r"\W+", "_", words).strip("_").lower()


def _listed(columns: Sequence[str]) -> str:
    names = sorted(repr(str(column)) for column in columns)
    more = len(names) - MAX_SHOWN
    return (", ".join(names[:MAX_SHOWN]) or "no columns") + (
        f" and {more} more" if more > 0 else ""
    )


def _json(text: str) -> Any:
    """Return the JSON value of a text, or `None`."""
    if text.lstrip()[:1] not in ("[", '"'):
        return None
    try:
        return parse(text)
    except ValueError:
        return None


def _decoded_prompt(value: Any) -> Any:
    """Return the messages of a prompt that is JSON in a text, also if it was encoded twice."""
    decoded = value
    for _ in range(2):
        if isinstance(decoded, str):
            decoded = _json(decoded)
    return decoded if isinstance(value, str) and _are_messages(decoded) else value


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value)
    )
