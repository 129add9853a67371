"""What a caller may pass, as the fields of the wire format. No I/O.

A wrong argument raises `InvalidArgument`, which names it.
"""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from markscheme import hashing
from markscheme.errors import InvalidArgument
from markscheme.jsonl_rows import locate_error
from markscheme.names import path_segment
from markscheme.protocol import GroupLike, Model, PromptLike, RubricLike, to_wire
from markscheme.schema import Group, Rubric, RubricRef, TeachRequest
from markscheme.text import check_valid


def validated(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Return the model with these fields. Raises `InvalidArgument`."""
    plain = {name: wire_value(value, name) for name, value in fields.items()}
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        place, message = locate_error(error, plain)
        raise InvalidArgument(place, message) from error


def wire_value(value: Any, param: str) -> Any:
    """Return the value as plain data; see `to_wire`. Raises `InvalidArgument`."""
    try:
        return to_wire(value)
    except RecursionError as error:
        raise InvalidArgument(param, "is nested too deeply") from error


def rubric_id(rubric: RubricLike, param: str = "rubric_id") -> str:
    """Return the id of a rubric, or the id itself. Raises `InvalidArgument`."""
    if isinstance(rubric, Rubric | RubricRef):
        return rubric.id
    if not isinstance(rubric, str):
        raise InvalidArgument(
            param, f"must be the id of a rubric or a Rubric, not a {type(rubric).__name__}"
        )
    if not rubric.strip():
        raise InvalidArgument(param, "must not be empty")
    try:
        return check_valid(rubric)
    except ValueError as error:
        raise InvalidArgument(param, str(error)) from error


def rubric_path(rubric: RubricLike) -> str:
    """Return the path of a rubric, with its id quoted. Raises `InvalidArgument`."""
    return f"/v1/rubrics/{quote(rubric_id(rubric), safe='')}"


def run_path(run: str) -> str:
    """Return the path of a run, with its id quoted. Raises `InvalidArgument`."""
    return f"/v1/runs/{path_segment(checked_id(run, 'run_id'))}"


def group_path(group: str) -> str:
    """Return the path of a group, with its id quoted. Raises `InvalidArgument`."""
    return f"/v1/groups/{quote(checked_id(group, 'group_id'), safe='')}"


def replay_path(replay: str) -> str:
    """Return the path of a replay, with its id quoted. Raises `InvalidArgument`."""
    return f"/v1/replays/{quote(checked_id(replay, 'replay_id'), safe='')}"


def checked_id(value: str, param: str) -> str:
    """Return an id. Raises `InvalidArgument` for one that cannot be."""
    if not isinstance(value, str):
        raise InvalidArgument(param, f"must be a string, not a {type(value).__name__}")
    if not value:
        raise InvalidArgument(param, "must not be empty")
    try:
        return check_valid(value)
    except ValueError as error:
        raise InvalidArgument(param, str(error)) from error


def prompt_key(prompt: PromptLike | None, key: str | None) -> str | None:
    """Return the key of a prompt, or the key itself. Raises `InvalidArgument`.

    A key finds chat messages too, and prompts that are too long for a URL.
    """
    if prompt is None:
        return key
    if key is not None:
        raise InvalidArgument("prompt_key", "give either prompt or prompt_key")
    checked = validated(TeachRequest, {"prompt": prompt}).prompt
    plain = checked if isinstance(checked, str) else [m.model_dump(mode="json") for m in checked]
    return hashing.prompt_key(hashing.messages_of(plain))


def names(values: Iterable[str] | None, param: str) -> list[str] | None:
    """Return a list of names; one text alone, whose letters would be taken, is refused."""
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgument(param, f"must be a list, such as [{str(values)!r}]")
    found = list(values)
    for index, each in enumerate(found):
        if not isinstance(each, str):
            raise InvalidArgument(
                f"{param}[{index}]", f"must be a text, not a {type(each).__name__}"
            )
    return found


def day(value: date | None, param: str) -> str | None:
    """Return a date as the API writes it. Raises `InvalidArgument`."""
    if value is not None and not isinstance(value, date):
        raise InvalidArgument(param, f"must be a date, not a {type(value).__name__}")
    return None if value is None else f"{value:%Y-%m-%d}"


def check_callback(on_group: object, *, may_be_async: bool = True) -> None:
    """Raise `InvalidArgument` for what cannot be called, or would have to be awaited."""
    if on_group is None:
        return
    if not callable(on_group):
        raise InvalidArgument("on_group", f"must be a function, not a {type(on_group).__name__}")
    called = (on_group, type(on_group).__call__)  # a function, or an object's method
    if not may_be_async and any(map(inspect.iscoroutinefunction, called)):
        raise InvalidArgument("on_group", "must not be async; AsyncClient awaits it")


def groups(values: Iterable[GroupLike]) -> list[Any]:
    """Return groups as plain data, with an id for each group and rollout that has none.

    Generated ids depend on the position alone: `g0`, `g1`, … and `r0`, `r1`, ….
    Raises `InvalidArgument`.
    """
    if isinstance(values, str | Mapping | Group) or not isinstance(values, Iterable):
        raise InvalidArgument("groups", f"must be a list of groups, not a {type(values).__name__}")
    plain = [_group(value, f"groups[{index}]") for index, value in enumerate(values)]
    return _with_ids(plain, "g")


def rollout(value: object) -> dict[str, Any]:
    """Return one rollout as plain data; it must have an id. Raises `InvalidArgument`."""
    plain = _rollout(wire_value(value, "rollout"), "rollout")
    if plain.get("id") is None:
        raise InvalidArgument(
            "rollout",
            'needs an id of its own within the group, such as {"id": "r0", "text": …}: without '
            "one it cannot be told from a rollout that says the same",
        )
    return plain


def _group(value: object, place: str) -> Any:
    if isinstance(value, Mapping):
        # pandas has NaN where a row has no value.
        value = {name: each for name, each in value.items() if not _is_nan(each)}
        if value.get("rubric_id") is not None:
            value["rubric_id"] = rubric_id(value["rubric_id"], f"{place}.rubric_id")
    group = wire_value(value, place)
    if not isinstance(group, dict):
        raise InvalidArgument(
            place, f"must be a group with prompt and rollouts, not a {type(value).__name__}"
        )
    if isinstance(rollouts := group.get("rollouts"), list):
        placed = [_rollout(each, f"{place}.rollouts[{n}]") for n, each in enumerate(rollouts)]
        group["rollouts"] = _with_ids(placed, "r")
    return group


def _rollout(value: Any, place: str) -> dict[str, Any]:
    """Return a rollout with its fields: a text and a list of messages are its content."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list):
        return {"messages": value}
    if not isinstance(value, dict):
        raise InvalidArgument(
            place,
            f"must be a text, a list of messages or a Rollout, not a {type(value).__name__}",
        )
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _with_ids(items: Sequence[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    taken = {item["id"] for item in items if isinstance(item.get("id"), str)}
    return [
        {**item, "id": _free_id(f"{prefix}{index}", prefix, taken)}
        if item.get("id") is None
        else item
        for index, item in enumerate(items)
    ]


def _free_id(name: str, prefix: str, taken: Collection[str]) -> str:
    """Return the name, with the prefix repeated while a caller's own id is the same."""
    while name in taken:
        name = prefix + name
    return name
