"""A row, a source of rows, and their errors."""

import base64
import hashlib
import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

MAX_ROW_BYTES = 32 * 1024 * 1024
"""Maximum size of one row of text: the service takes no larger request."""


class SourceError(ValueError):
    """A source that cannot be read. The message names it."""


class RowError(SourceError):
    """A row that cannot be used. The message names the file, the row and, if known, the column."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        place: Where it is, for messages: `data.csv, row 3`.
        name: Its name in the source, such as `row-3`; no two rows share it.
        load: Returns its content. Raises `ValueError` if this row alone cannot be read.
        untyped: Whether every cell is text, as in CSV.
        columns: All columns of its table, also those that `load` leaves out; empty where each row
            has its own.
    """

    place: str
    name: str
    load: Callable[[], Any]
    untyped: bool = False
    columns: tuple[str, ...] = ()

    def read(self) -> dict[str, Any]:
        """Return the row as an object by column. Raises `RowError`."""
        try:
            content = self.load()
        except ValueError as error:
            raise RowError(f"{self.place}: {error}") from error
        except RecursionError as error:
            raise RowError(f"{self.place}: nested too deeply") from error
        if not isinstance(content, dict):
            raise RowError(f"{self.place}: must be a JSON object")
        return content


class DataSource(Protocol):
    """Rows that can be read as often as needed, each time from the start."""

    @property
    def name(self) -> str:
        """The name that it was opened by."""

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the rows in order. Raises `SourceError` where reading cannot go on.

        Args:
            columns: Columns that are needed; tables leave out the others. Default: all.
        """

    def count(self) -> int:
        """Return the number of rows. Raises `SourceError`."""

    def fingerprint(self) -> str:
        """Return a sha256 of what it holds, in hex. Raises `SourceError`."""


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def as_json(value: Any) -> Any:
    """Return a value that JSON has no type for as one that it has; other values as they are.

    Dates and times become ISO 8601 text, durations seconds, decimals numbers; bytes
    become the text that they are in UTF-8, else base64.
    """
    match value:
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case bytes():
            try:
                return value.decode()  # older writers of Parquet mark no column as text
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        case dict():
            return {name: as_json(each) for name, each in value.items()}
        case list():
            return [as_json(each) for each in value]
    return value


def check_distinct(columns: Sequence[str]) -> None:
    """Raise `ValueError` for a column name that is there twice."""
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the column {twice!r} is there twice")


class FileSource:
    """What the sources that are one file share."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Return the sha256 of the file's bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def require(module: str, purpose: str) -> ModuleType:
    """Return an optional library. Raises `SourceError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceError(
            f"{purpose} needs the data extra: pip install 'markscheme[data]'"
        ) from error
