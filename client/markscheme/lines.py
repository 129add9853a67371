"""Lines of JSON Lines files and NDJSON streams: they end at a line feed and nowhere else.

A carriage return before it belongs to the end. JSON strings may hold U+2028, U+0085 and others at
which ``str`` and httpx end a line too. Here bytes are cut first and decoded a whole line at a time,
so that pieces of a stream may end anywhere, also within a character.
"""

import codecs
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

PIECE_BYTES = 1 << 16
BLANK = " \t\r\n"
"""What JSON takes for white space; a line of nothing else is blank."""
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""The longer ones first: one begins as UTF-16's does."""


class LineError(ValueError):
    """A line that cannot be used. The message names it, and the file if there is one.

    ``ended``: whether its end had come; without one it may have been cut off.
    """

    def __init__(self, message: str, *, ended: bool = True) -> None:
        super().__init__(message)
        self.ended = ended


class _Cutter:
    """Cuts pieces of bytes into lines; holds no more than the line that has begun."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._first = True

    def feed(self, piece: bytes | str) -> Iterator[bytes]:
        """The lines that this piece ends."""
        *ends, rest = (piece.encode() if isinstance(piece, str) else piece).split(b"\n")
        for end in ends:
            self._begun += end
            yield self._take()
        self._begun += rest

    def rest(self) -> Iterator[bytes]:
        """The last line, if it has no end."""
        if self._begun:
            line = self._take()
            if line:  # a byte order mark alone is no line
                yield line

    def _take(self) -> bytes:
        line = bytes(self._begun)
        self._begun.clear()
        if self._first:
            self._first = False
            line = without_mark(line)
        return line.removesuffix(b"\r")


def without_mark(content: bytes) -> bytes:
    """The beginning of a file without UTF-8's byte order mark.

    Raises :class:`LineError` for the mark of UTF-16 or UTF-32.
    """
    for mark, name in _OTHER_MARKS:
        if content.startswith(mark):
            raise LineError(f"line 1: this is {name} text; save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def decode(number: int, line: bytes, *, ended: bool = True) -> str:
    """The text of a line. Raises :class:`LineError`."""
    if b"\0" in line:
        raise LineError(
            f"line {number}: it holds NUL bytes, as UTF-16 text does; save it as UTF-8", ended=ended
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise LineError(
            f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1}); "
            "save it as UTF-8",
            ended=ended,
        ) from None


def split_lines(pieces: Iterable[bytes | str], *, whole: bool = False) -> Iterator[str]:
    """The lines of a stream without their ends. Raises :class:`LineError`.

    ``whole``: pass over a last line that has no end, as whoever was killed while writing leaves it.
    """
    cutter, number = _Cutter(), 0
    for piece in pieces:
        for line in cutter.feed(piece):
            yield decode(number := number + 1, line)
    if not whole:
        for line in cutter.rest():
            yield decode(number + 1, line, ended=False)


async def split_lines_async(
    pieces: AsyncIterable[bytes | str], *, whole: bool = False
) -> AsyncIterator[str]:
    """:func:`split_lines` for code that awaits."""
    cutter, number = _Cutter(), 0
    async for piece in pieces:
        for line in cutter.feed(piece):
            yield decode(number := number + 1, line)
    if not whole:
        for line in cutter.rest():
            yield decode(number + 1, line, ended=False)


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, for who decodes each by itself.

    Raises :class:`LineError` and ``OSError``.
    """
    cutter = _Cutter()
    try:
        for piece in _pieces(path):
            yield from cutter.feed(piece)
        yield from cutter.rest()
    except LineError as error:
        raise LineError(f"{path}, {error}", ended=error.ended) from None


def read_lines(path: Path, *, whole: bool = False) -> Iterator[str]:
    """The lines of a file, blank ones too, without their ends; errors name the file and the line.

    ``whole``: see :func:`split_lines`. Raises :class:`LineError` and ``OSError``.
    """
    try:
        yield from split_lines(_pieces(path), whole=whole)
    except LineError as error:
        raise LineError(f"{path}, {error}", ended=error.ended) from None


def parse(line: str) -> Any:
    """The JSON value of a line. Raises ``ValueError`` saying what is wrong with it."""
    if line.startswith("\ufeff"):
        raise ValueError("a byte order mark within the file; it may stand at its start only")
    try:
        return json.loads(line, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        ) from None
    except RecursionError:
        raise ValueError("not usable JSON (nested too deeply)") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"not JSON ({name} is no number)")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, PIECE_BYTES), b"")
