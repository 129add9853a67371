"""Text files of rows: JSON Lines, JSON and CSV. Standard library only."""

import csv
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markscheme.data.base import (
    MAX_ROW_BYTES,
    FileSource,
    Row,
    RowError,
    SourceError,
    check_distinct,
)
from markscheme.jsonl import (
    WHITESPACE,
    LineError,
    decode,
    no_number,
    parse,
    read_raw_lines,
    unusable,
)

CHUNK_CHARACTERS = 1 << 16
LONGEST_TOKEN = 16
"""Characters within which an unfinished word or escape of JSON begins before the text's end."""


@dataclass(frozen=True)
class JsonLines(FileSource):
    """A file with one JSON object a line; blank lines are skipped."""

    path: Path

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the lines; a line is parsed when its row is read, so that it fails alone."""
        try:
            for number, line in enumerate(read_raw_lines(self.path, max_bytes=MAX_ROW_BYTES), 1):
                if line.strip(WHITESPACE.encode()):
                    yield Row(
                        f"{self.path}, line {number}",
                        f"line-{number}",
                        partial(_parse_line, number, line),
                    )
        except LineError as error:
            raise RowError(str(error)) from error

    def count(self) -> int:
        """Count the lines that are not blank."""
        return sum(1 for _ in self.rows())


def _parse_line(number: int, line: bytes) -> Any:
    try:
        return parse(decode(number, line))
    except LineError as error:
        # `Row` names the line itself.
        raise ValueError(str(error).removeprefix(f"line {number}: ")) from error


@dataclass(frozen=True)
class Json(FileSource):
    """A file with an array of objects, or with one or several objects one after the other."""

    path: Path

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the objects, parsed one at a time."""
        number = 0
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                for number, value in enumerate(_json_values(file.read), 1):
                    yield Row(f"{self.path}, row {number}", f"row-{number}", partial(_same, value))
        except UnicodeDecodeError as error:
            raise RowError(
                f"{self.path}, row {number + 1}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
        except ValueError as error:
            raise RowError(f"{self.path}, row {number + 1}: {error}") from error

    def count(self) -> int:
        """Count the objects."""
        return sum(1 for _ in self.rows())


class _JsonText:
    """A growing window on a JSON text: what was parsed is dropped."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text, self._at, self._ended = "", 0, False
        self._decoder = json.JSONDecoder(parse_constant=no_number)

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the text."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in WHITESPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self) -> None:
        """Skip the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Parse the next value. Raises `ValueError`."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Steps double, so a value that takes many is parsed twice as often at most.
                if self._may_be_unfinished(error) and self._more():
                    continue
                raise ValueError(f"not JSON ({error.msg.removesuffix(' at')})") from None
            except (RecursionError, ValueError) as error:
                raise unusable(error) from None
            # A number at the very end may go on in the next chunk.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _may_be_unfinished(self, error: json.JSONDecodeError) -> bool:
        """Return whether an error may come from the window's end and not from the text."""
        return error.msg.startswith("Unterminated string") or (
            error.pos + LONGEST_TOKEN > len(self._text)
        )

    def _more(self) -> bool:
        if self._ended:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        if len(self._text) > MAX_ROW_BYTES:
            raise ValueError(f"larger than {MAX_ROW_BYTES // 2**20} MiB, or not JSON")
        chunk = self._read(max(CHUNK_CHARACTERS, len(self._text)))
        self._ended = not chunk
        self._text += chunk
        return bool(chunk)


def _json_values(read: Callable[[int], str]) -> Iterator[Any]:
    text = _JsonText(read)
    if text.peek() != "[":
        while text.peek():
            yield text.value()
        return
    text.take()
    if text.peek() == "]":
        text.take()
    else:
        while True:
            yield text.value()
            separator = text.peek()
            text.take()
            if separator == "]":
                break
            if separator != ",":
                raise ValueError("not JSON (a comma or the end of the list is missing)")
    if text.peek():
        raise ValueError("not JSON (text after the end of the list)")


@dataclass(frozen=True)
class Csv(FileSource):
    """A comma-separated file whose first row names the columns. An empty cell is null.

    All cells are text: a list stands in a cell as JSON.
    """

    path: Path

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the rows below the header."""
        csv.field_size_limit(MAX_ROW_BYTES)
        number, line = 0, 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                header = next((cells for cells in reader if cells), None)  # not a blank line
                if header is None:
                    return
                check_distinct(header)
                line = reader.line_num
                for cells in reader:
                    start, line = line + 1, reader.line_num
                    if not cells:
                        continue  # a blank line
                    number += 1
                    yield Row(
                        f"{self.path}, row {number} (line {start})",
                        f"row-{number}",
                        partial(_by_column, header, cells),
                        untyped=True,
                    )
        except UnicodeDecodeError as error:
            raise RowError(
                f"{self.path}, near line {line + 1}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
        except csv.Error as error:
            raise RowError(f"{self.path}, line {line + 1}: not CSV ({error})") from error
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from error

    def count(self) -> int:
        """Count the rows below the header."""
        return sum(1 for _ in self.rows())


def _by_column(header: list[str], cells: list[str]) -> dict[str, str | None]:
    if len(cells) != len(header):
        raise ValueError(f"has {len(cells)} cells, and the header names {len(header)} columns")
    return {name: cell or None for name, cell in zip(header, cells, strict=True) if name}


def _same(value: Any) -> Any:
    return value
