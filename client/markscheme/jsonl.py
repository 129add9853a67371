"""Read JSON Lines files and NDJSON streams: a line ends at a line feed and nowhere else.

A carriage return before the line feed belongs to the line end. JSON strings may hold U+2028, U+0085
and other characters at which `str.splitlines` and httpx end a line. This module cuts bytes first
and decodes whole lines, so a chunk of a stream may end anywhere, even inside a character.
"""

import codecs
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

CHUNK_BYTES = 1 << 16
WHITESPACE = " \t\r\n"
"""JSON's white space; a line of nothing else is blank."""
_OTHER_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Longer marks first: UTF-32's begins as UTF-16's does."""


class LineError(ValueError):
    """A line that cannot be used. The message names the line, and the file if there is one.

    Attributes:
        complete: Whether the line had its end; without one it may have been cut off.
    """

    def __init__(self, message: str, *, complete: bool = True) -> None:
        super().__init__(message)
        self.complete = complete


class _LineSplitter:
    """Splits chunks of bytes into lines; buffers only the unfinished line.

    Raises `LineError` for a line of more than `max_bytes`, before all of it is read.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._buffer = bytearray()
        self._first = True
        self._max_bytes, self._lines = max_bytes, 0

    def feed(self, chunk: bytes | str) -> Iterator[bytes]:
        """Return the lines that this chunk completes."""
        *ends, rest = (chunk.encode() if isinstance(chunk, str) else chunk).split(b"\n")
        # Decoding waits for the whole line: a chunk may end inside a character.
        for end in ends:
            self._buffer += end
            yield self._take()
        self._buffer += rest
        if self._max_bytes is not None and len(self._buffer) > self._max_bytes:
            raise LineError(
                f"line {self._lines + 1}: longer than {self._max_bytes // 2**20} MiB",
                complete=False,
            )

    def rest(self) -> Iterator[bytes]:
        """Return the last line if it has no line feed."""
        if self._buffer:
            line = self._take()
            if line:  # a byte order mark alone is not a line
                yield line

    def _take(self) -> bytes:
        line = bytes(self._buffer)
        self._buffer.clear()
        self._lines += 1
        if self._first:
            self._first = False
            line = strip_bom(line)
        return line.removesuffix(b"\r")


def strip_bom(content: bytes) -> bytes:
    """Return the start of a file without UTF-8's byte order mark.

    Raises `LineError` for the mark of UTF-16 or UTF-32.
    """
    for mark, name in _OTHER_BOMS:
        if content.startswith(mark):
            raise LineError(f"line 1: this is {name} text; save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def decode(number: int, line: bytes, *, complete: bool = True) -> str:
    """Return the text of a line. Raises `LineError`."""
    if b"\0" in line:
        raise LineError(
            f"line {number}: it holds NUL bytes, as UTF-16 text does; save it as UTF-8",
            complete=complete,
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise LineError(
            f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1}); "
            "save it as UTF-8",
            complete=complete,
        ) from None


def split_lines(chunks: Iterable[bytes | str], *, complete_only: bool = False) -> Iterator[str]:
    """Yield the lines of a stream without their ends. Raises `LineError`.

    Args:
        chunks: Pieces of the stream, cut anywhere.
        complete_only: Ignore a last line without a line feed, as a killed writer leaves it.
    """
    splitter, number = _LineSplitter(), 0
    for chunk in chunks:
        for line in splitter.feed(chunk):
            yield decode(number := number + 1, line)
    if not complete_only:
        for line in splitter.rest():
            yield decode(number + 1, line, complete=False)


async def split_lines_async(
    chunks: AsyncIterable[bytes | str], *, complete_only: bool = False
) -> AsyncIterator[str]:
    """Like `split_lines`, for asyncio."""
    splitter, number = _LineSplitter(), 0
    async for chunk in chunks:
        for line in splitter.feed(chunk):
            yield decode(number := number + 1, line)
    if not complete_only:
        for line in splitter.rest():
            yield decode(number + 1, line, complete=False)


def read_raw_lines(path: Path, *, max_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a file as bytes, for callers that decode each line themselves.

    Args:
        path: The file.
        max_bytes: Maximum length of a line; default: none.

    Raises:
        LineError: The file is of another encoding, or a line is too long.
        OSError: The file cannot be read.
    """
    splitter = _LineSplitter(max_bytes)
    try:
        for chunk in _chunks(path):
            yield from splitter.feed(chunk)
        yield from splitter.rest()
    except LineError as error:
        raise LineError(f"{path}, {error}", complete=error.complete) from None


def read_lines(path: Path, *, complete_only: bool = False) -> Iterator[str]:
    """Yield the lines of a file without their ends, blank ones included.

    Args:
        path: The file.
        complete_only: See `split_lines`.

    Raises:
        LineError: Names the file and the line.
        OSError: The file cannot be read.
    """
    try:
        yield from split_lines(_chunks(path), complete_only=complete_only)
    except LineError as error:
        raise LineError(f"{path}, {error}", complete=error.complete) from None


def parse(line: str) -> Any:
    """Return the JSON value of a line. Raises `ValueError` that says what is wrong."""
    if line.startswith("\ufeff"):
        raise ValueError("a byte order mark within the file; it may stand at its start only")
    try:
        return json.loads(line, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        ) from None
    except (RecursionError, ValueError) as error:
        raise unusable(error) from None


def unusable(error: Exception) -> ValueError:
    """Return the error for a value that Python's parser gives up on, in words of our own."""
    if isinstance(error, _NoNumber):
        return error
    why = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
    return ValueError(f"not usable JSON ({why})")


class _NoNumber(ValueError):
    """A constant of JavaScript where JSON has a number."""


def no_number(name: str) -> NoReturn:
    """Refuse `NaN` and `Infinity`, which Python's parser takes: its hook `parse_constant`."""
    raise _NoNumber(f"not JSON ({name} is no number)")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, CHUNK_BYTES), b"")
