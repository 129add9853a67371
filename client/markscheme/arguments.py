"""What a caller may pass, as the fields of the wire format. No I/O.

A wrong argument raises `InvalidArgument`, which names it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from markscheme import hashing
from markscheme.errors import InvalidArgument
from markscheme.jsonl_rows import locate_error
from markscheme.protocol import GroupLike, Model, PromptLike, RubricLike, to_wire
from markscheme.schema import Group, Rubric, RubricRef, TeachRequest


def validated(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Return the model with these fields. Raises `InvalidArgument`."""
    plain = to_wire(fields)
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        place, message = locate_error(error, plain)
        raise InvalidArgument(place, message) from error


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
    return rubric


def rubric_path(rubric: RubricLike) -> str:
    """Return the path of a rubric, with its id quoted. Raises `InvalidArgument`."""
    return f"/v1/rubrics/{quote(rubric_id(rubric), safe='')}"


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
    return list(values)


def groups(values: Iterable[GroupLike]) -> list[Any]:
    """Return groups as plain data, with an id for each group and rollout that has none.

    Generated ids depend on the position alone: `g0`, `g1`, … and `r0`, `r1`, ….
    Raises `InvalidArgument`.
    """
    if isinstance(values, str | Mapping | Group) or not isinstance(values, Iterable):
        raise InvalidArgument("groups", f"must be a list of groups, not a {type(values).__name__}")
    plain = [_group(value, f"groups[{index}]") for index, value in enumerate(values)]
    return _with_ids(plain, "g")


def _group(value: object, place: str) -> Any:
    if isinstance(value, Mapping) and value.get("rubric_id") is not None:
        value = {**value, "rubric_id": rubric_id(value["rubric_id"], f"{place}.rubric_id")}
    group = to_wire(value)
    if not isinstance(group, dict):
        raise InvalidArgument(
            place, f"must be a group with prompt and rollouts, not a {type(value).__name__}"
        )
    if isinstance(rollouts := group.get("rollouts"), list):
        group["rollouts"] = _with_ids([_rollout(rollout) for rollout in rollouts], "r")
    return group


def _rollout(value: Any) -> Any:
    """Return a rollout with its fields: a text and a list of messages are its content."""
    if isinstance(value, str):
        return {"text": value}
    return {"messages": value} if isinstance(value, list) else value


def _with_ids(items: Sequence[Any], prefix: str) -> list[Any]:
    taken = {item["id"] for item in items if _has_id(item) and isinstance(item["id"], str)}
    return [
        {**item, "id": _free_id(f"{prefix}{index}", prefix, taken)}
        if isinstance(item, dict) and not _has_id(item)
        else item
        for index, item in enumerate(items)
    ]


def _has_id(item: Any) -> bool:
    return isinstance(item, dict) and item.get("id") is not None


def _free_id(name: str, prefix: str, taken: Collection[str]) -> str:
    """Return the name, with the prefix repeated while a caller's own id is the same."""
    while name in taken:
        name = prefix + name
    return name
