"""Tables with types: Parquet files through pyarrow, data sets of the hub through datasets.

Both libraries are optional (the extra `data`) and imported when a table is opened.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from markscheme.data.base import (
    FileSource,
    Row,
    RowError,
    SourceError,
    as_json,
    check_distinct,
    require,
)

BATCH_ROWS = 256
"""Rows that are decoded at a time: a cell may be megabytes."""


@dataclass(frozen=True)
class Parquet(FileSource):
    """A Parquet file, decoded a few hundred rows at a time."""

    path: Path

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the rows without null cells and null fields: tables pad rows with them."""
        with self._open() as table:
            names = tuple(table.schema_arrow.names)
            try:
                check_distinct(names)
            except ValueError as error:
                raise SourceError(f"{self.path}: {error}") from error
            needed = _needed(names, columns)
            batches = table.iter_batches(batch_size=BATCH_ROWS, columns=needed)
            yield from _decoded(self.name, names, batches)

    def count(self) -> int:
        """Return the number of rows that the file states."""
        with self._open() as table:
            return int(table.metadata.num_rows)

    def _open(self) -> Any:
        pyarrow = require("pyarrow", "reading Parquet")
        parquet = require("pyarrow.parquet", "reading Parquet")
        with self.path.open("rb"):
            pass  # an OSError that says whether it is missing or not readable
        try:
            # Without pre-buffering a whole row group is not held in memory at once.
            return parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"{self.path} is not a Parquet file ({_first_line(error)})"
            ) from error


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set on the hub: `org/name:split` or `org/name@config:split`.

    It is downloaded once into the cache of `datasets` and read from there, so a run that was
    stopped does not download it again.
    """

    name: str
    path: str
    config: str | None
    split: str

    @cached_property
    def _table(self) -> Any:
        datasets = require("datasets", f"{self.name}: reading a data set of the hub")
        try:
            return datasets.load_dataset(self.path, self.config, split=self.split)
        # `datasets` raises errors of many libraries: of HTTP, of the hub, of file formats.
        except Exception as error:
            raise SourceError(
                f"cannot read {self.name} from the hub: {_first_line(error)} (there is no file or "
                "folder of that name)"
            ) from error

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the rows. Images and audio are left encoded."""
        names = tuple(self._table.column_names)
        # As Arrow, no feature decodes its files.
        table = self._table.select_columns(_needed(names, columns)).with_format("arrow")
        yield from _decoded(self.name, names, table.iter(batch_size=BATCH_ROWS))

    def count(self) -> int:
        """Return the number of rows."""
        return len(self._table)

    def fingerprint(self) -> str:
        """Return the sha256 of the rows: the hub may serve others under the same name."""
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(json.dumps(row.read(), default=str).encode() + b"\n")
        return digest.hexdigest()


def _decoded(name: str, columns: tuple[str, ...], batches: Iterator[Any]) -> Iterator[Row]:
    """Yield the rows of Arrow batches. Raises `RowError` where a batch cannot be decoded."""
    pyarrow = require("pyarrow", "reading Parquet")
    number = 0
    while True:
        try:
            batch = next(batches, None)
            decoded = [] if batch is None else batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise RowError(
                f"{name}, after row {number}: not readable ({_first_line(error)})"
            ) from error
        if batch is None:
            return
        for value in decoded:
            number += 1
            yield Row(
                f"{name}, row {number}",
                f"row-{number}",
                partial(_cells, value),
                columns=columns,
            )


def _needed(names: Sequence[str], columns: Collection[str] | None) -> list[str]:
    """Return the columns to decode; one at least, since rows without any are not counted."""
    needed = [name for name in names if columns is None or name in columns]
    return needed or list(names[:1])


def _cells(row: dict[str, Any]) -> Any:
    return _without_nulls(as_json(row))


def _without_nulls(value: Any) -> Any:
    """Return a cell without the null fields of its structs, and a row without its null columns."""
    if isinstance(value, dict):
        return {
            name: _without_nulls(each)
            for name, each in value.items()
            if each is not None and each == each  # pandas writes NaN for a cell without a value
        }
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
