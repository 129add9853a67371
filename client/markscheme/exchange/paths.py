"""Find, take out and put back values of a row by path, such as `reward_model.rubrics`."""

import json
import re
from collections.abc import Sequence
from typing import Any

from markscheme.schema.metadata import check_json

Path = tuple[str | int, ...]
MISSING: Any = object()
MAX_ENCODED = 4 * 2**20
"""Characters of JSON in a string that are looked into."""
_STEP = re.compile(r"[^.\[\]|]+|\[(\d+)\]")


def parse_path(text: str) -> Path:
    """Return the steps of a path: names joined by dots, positions in square brackets.

    A lone dot is the value itself. Raises `ValueError`.
    """
    if text == ".":
        return ()
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is no path: write names joined by dots, such as a.b[0].c")
        steps.append(int(match[1]) if match[1] is not None else match[0])
        position = match.end()
        if position < len(text) and text[position] == ".":
            position += 1
            if position == len(text):
                raise ValueError(f"{text!r} is no path: it ends with a dot")
    if not steps:
        raise ValueError("a path must not be empty")
    return tuple(steps)


def parse_paths(text: str) -> tuple[Path, ...]:
    """Return alternative paths, which are divided by `|`. Raises `ValueError`."""
    return tuple(parse_path(each.strip()) for each in text.split("|"))


def write_path(path: Path) -> str:
    """Return a path as text; the path of the value itself is empty."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def find(value: Any, path: Path) -> Any:
    """Return the value at a path, or `MISSING`. A step may lead into JSON that is a string."""
    for step in path:
        value = _step(decode(value), step)
        if value is MISSING:
            break
    return value


def _step(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step, MISSING)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return MISSING


def first(value: Any, paths: Sequence[Path]) -> tuple[Path, Any]:
    """Return the first path that leads to something, and it; else the first path and `MISSING`.

    Null counts as nothing, but is preferred to a path that is not there.
    """
    found = [(path, find(value, path)) for path in paths]
    for path, each in found:
        if each is not MISSING and each is not None:
            return path, each
    return next((pair for pair in found if pair[1] is not MISSING), (paths[0], MISSING))


def take(row: dict[str, Any], path: Path) -> None:
    """Remove what is at a path, and objects that are empty without it.

    What lies in a list or in a string of JSON stays: `put` finds it there.
    """
    if not path:
        return
    parents: list[Any] = [row]
    for step in path[:-1]:
        inner = parents[-1]
        if not isinstance(inner, dict) or step not in inner:
            return
        parents.append(inner[step])
    for parent, step in zip(reversed(parents), reversed(path), strict=True):
        if not isinstance(parent, dict) or step not in parent:
            return
        # An object on the way goes only if nothing else was in it.
        if step is not path[-1] and parent[step] != {}:
            return
        del parent[step]


def put(row: Any, path: Path, value: Any) -> Any:
    """Return the row with the value at a path; objects on the way are made where they miss."""
    if not path:
        return value
    # Also keeps a string of JSON as it was written.
    if same(find(row, path), value):
        return row
    encoded = isinstance(row, str)
    inner = decode(row)
    step, rest = path[0], path[1:]
    if isinstance(inner, list) and isinstance(step, int) and step < len(inner):
        inner[step] = put(inner[step], rest, value)
    else:
        if not isinstance(inner, dict):
            inner = {}
        inner[str(step)] = put(inner.get(str(step), {}), rest, value)
    return json.dumps(inner, ensure_ascii=False) if encoded else inner


def decode(value: Any) -> Any:
    """Return what a string of JSON holds if that is a list or an object, else the value.

    JSON may be in a string twice: some data sets encode a column that was encoded already. The same
    limits hold as for a content: a string that breaks one is a text.
    """
    if (
        isinstance(value, str)
        and len(value) <= MAX_ENCODED
        and value[:100].lstrip()[:1] in ("[", "{", '"')
    ):
        try:
            found = json.loads(value)
            found = json.loads(found) if isinstance(found, str) else found
            return check_json(found) if isinstance(found, list | dict) else value
        except (ValueError, RecursionError):
            return value
    return value


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same; 1, 1.0 and true are three."""
    if one is MISSING or other is MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
