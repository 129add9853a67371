"""Read rows of a JSON Lines file into models; errors name the file, line and field at fault."""

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from markscheme.jsonl import WHITESPACE, LineError, parse, read_lines
from markscheme.messages import plain_prompt

T = TypeVar("T")

_MESSAGES = {
    "missing": "is missing",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "extra_forbidden": "is not known here",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(path: Path, read: Callable[[Any], T]) -> Iterator[tuple[int, T]]:
    """Yield line number and parsed row of every line that is not blank.

    Args:
        path: The file.
        read: Turns a line's JSON value into a row; raises `ValueError` for a bad one.

    Raises:
        LineError: The first line that cannot be used.
        OSError: The file cannot be read.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip(WHITESPACE):
            continue
        row: Any = None
        try:
            row = parse(line)
            parsed = read(row)
        except ValidationError as error:
            raise LineError(f"{path}, line {number}: {describe_error(error, row)}") from error
        except ValueError as error:
            raise LineError(f"{path}, line {number}: {error}") from error
        yield number, parsed


def non_null_columns(row: Any) -> dict[str, Any]:
    """Return the columns of a row that are not null, with plain messages in its prompt.

    Raises `ValueError`.
    """
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object")
    filled = {name: value for name, value in row.items() if value is not None}
    if "prompt" in filled:
        filled["prompt"] = plain_prompt(filled["prompt"])
    return filled


def check_unicode(value: Any, location: str = "") -> Any:
    """Return the value if its strings are valid Unicode. Raises `ValueError`.

    JSON can spell half a surrogate pair, which can be neither stored nor tokenised.
    """
    if isinstance(value, str) and (half := _SURROGATE.search(value)):
        raise ValueError(
            f"{location}: half a character ({ascii(half[0])[1:-1]}) at character {half.start() + 1}"
        )
    if isinstance(value, list):
        for number, each in enumerate(value):
            check_unicode(each, f"{location}[{number}]")
    if isinstance(value, dict):
        for name, each in value.items():
            check_unicode(each, f"{location}.{name}".lstrip("."))
    return value


def describe_error(error: ValidationError, value: Any) -> str:
    """Return what a model says of `value`, with the place: `prompt[2].content: …`."""
    place, message = locate_error(error, value)
    return f"{place}: {message}" if place else message


def locate_error(error: ValidationError, value: Any) -> tuple[str, str]:
    """Return the place of an error, such as `prompt[2].content`, and what a model says of it.

    The place is empty where the error is about `value` as a whole.

    Where a field has alternatives, the one that matched deepest is reported; one that failed on the
    value's type alone is left out if another says more. A missing field whose name is nearly that of
    an unknown one is reported with it.
    """
    located = [
        (_path_in(each["loc"], value, missing=each["type"] == "missing"), each)
        for each in error.errors(include_input=False, include_url=False)
    ]
    location = max((location for location, _ in located), key=len)
    deepest = [each for at, each in located if at == location]
    deepest = [each for each in deepest if not each["type"].endswith("_type")] or deepest
    message = " or ".join(dict.fromkeys(map(_text_of_error, deepest))).replace(
        " or must be ", " or "
    )
    unknown = [
        str(at[-1])
        for at, each in located
        if each["type"] == "extra_forbidden" and at[:-1] == location[:-1]
    ]
    if deepest[0]["type"] == "missing" and (
        unknown := get_close_matches(str(location[-1]), unknown)
    ):
        message += f"; {unknown[0]} is not known here"
    written = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in location
    ).lstrip(".")
    return written, message


def _text_of_error(each: ErrorDetails) -> str:
    if each["type"].endswith("too_short") and 1 in each.get("ctx", {}).values():
        return "must not be empty"
    return _MESSAGES.get(each["type"], each["msg"].removeprefix("Value error, "))


def _path_in(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> tuple[int | str, ...]:
    """Return the parts of a location that exist in the value; names of alternatives do not."""
    location: list[int | str] = []
    for number, part in enumerate(loc):
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)
        ):
            location.append(part)
            value = value[part]  # type: ignore[index]
        elif missing and number == len(loc) - 1:
            location.append(part)
    return tuple(location)
