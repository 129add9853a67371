"""Open JSON beside the fields that we know: what it may hold, and how much of it."""

from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import to_json

from markscheme.text import check_valid

MAX_VALUES = 100_000
"""Values in one JSON content: more than 256 criteria with their checks can need."""
MAX_DEPTH = 32
"""Levels of lists and objects in one content."""
MAX_METADATA_DEPTH = MAX_DEPTH + 4
"""Levels in a metadata object, which an import puts a content's fields into."""
MAX_METADATA_BYTES = 256 * 1024
"""Maximum size of a rubric's metadata, and of its criteria's together, as UTF-8 JSON."""
MAX_INTEGER = 2**53
"""Up to here an integer equals its float; no points come near it."""
_PATH_CHARACTERS = 60


def check_json(content: Any, max_depth: int = MAX_DEPTH) -> Any:
    """Return the content if it is JSON that can be sent, stored and walked.

    Decoders let NaN, NUL characters and lone surrogates through. Raises `ValueError`, with the
    place of the value at fault.
    """
    # Walk without recursion: the depth is what the sender chose.
    waiting: list[tuple[Any, int, tuple[str | int, ...]]] = [(content, 1, ())]
    seen = 0
    while waiting:
        value, depth, path = waiting.pop()
        if isinstance(value, str):
            try:
                check_valid(value)
            except ValueError as error:
                raise _at(path, str(error)) from None
        elif isinstance(value, float):
            if not isfinite(value):
                raise _at(path, "every number must be finite")
        elif isinstance(value, int):  # bool included
            if abs(value) > MAX_INTEGER:
                raise _at(path, "a number is too large")
        elif isinstance(value, (dict, list)):
            if depth > max_depth:
                raise _at(path, f"it is nested more than {max_depth} deep")
            seen += len(value)
            if seen > MAX_VALUES:
                raise ValueError(f"it holds more than {MAX_VALUES} values")
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise _at(path, "every name in it must be a string")
                    try:
                        check_valid(key)
                    except ValueError as error:
                        raise _at(path, f"a name {error}") from None
            waiting.extend(
                (inner, depth + 1, (*path, key))
                for key, inner in (value.items() if isinstance(value, dict) else enumerate(value))
            )
        elif value is not None:
            raise _at(path, f"a {type(value).__name__} is not JSON")
    return content


def json_bytes(value: Any) -> int:
    """Return the length of a JSON value as compact UTF-8."""
    return len(to_json(value))


def written_path(path: tuple[str | int, ...]) -> str:
    """Return a place in a JSON value as text, such as `rubrics[3].points`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    shown = "".join(c if c.isprintable() else "?" for c in text.removeprefix("."))
    return shown if len(shown) <= _PATH_CHARACTERS else shown[:_PATH_CHARACTERS] + "…"


def _at(path: tuple[str | int, ...], message: str) -> ValueError:
    return ValueError(f"{written_path(path)}: {message}" if path else message)


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if metadata:
        check_json(metadata, MAX_METADATA_DEPTH)
        size = json_bytes(metadata)
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"it takes {size} bytes; metadata may take {MAX_METADATA_BYTES}")
    return metadata


Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_check_metadata),
    Field(
        description="Any JSON object, such as what an imported row held beside the rubric. It is "
        "stored and returned; no judge sees it, and it is no part of the content hash"
    ),
]
