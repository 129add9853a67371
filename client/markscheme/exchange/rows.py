"""Read a row by its profile, and write it again: what has no place of its own is metadata.

A rubric's metadata holds, under the name of the format, the row's other fields as they were, and
under `$import` what `write_row` needs to give the row back: where a part stood if there are
several places, and its form if ours would differ (a number in a text, a prompt as JSON, a list as
numbered lines). Such a form is written only while it says what the rubric says. A criterion's
metadata holds the same of its own row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter, ValidationError

from markscheme.exchange.base import (
    ConversionIssues,
    Malformed,
    NotRepresentable,
    ReferenceAnswer,
    excerpt,
)
from markscheme.exchange.paths import (
    MISSING,
    Path,
    decode,
    find,
    first,
    parse_path,
    put,
    same,
    take,
    write_path,
)
from markscheme.exchange.profiles import Item, ItemList, Profile, Reference
from markscheme.exchange.promptfoo import render, rubric_text
from markscheme.exchange.values import (
    LARGEST_WEIGHT,
    SMALLEST_WEIGHT,
    WEIGHT_TOLERANCE,
    as_factor,
    numbered_columns,
    read_numbered,
    require,
    scaling,
    to_messages,
    to_number,
    to_points,
    to_references,
    to_text,
    write_messages,
)
from markscheme.schema.base import (
    MAX_CRITERIA,
    MAX_POINTS,
    MAX_TAGS,
    MAX_TEXT_LENGTH,
    Identifier,
    Message,
    Tag,
)
from markscheme.schema.metadata import MAX_METADATA_BYTES, json_bytes
from markscheme.schema.rubrics import Criterion
from markscheme.vocabulary import CATEGORIES, View

HOW = "$import"
"""The name under which a format's metadata says how the row was read."""
_OUR_ID = re.compile(r"c[1-9][0-9]{0,2}")
_TAG: TypeAdapter[str] = TypeAdapter(Tag)
_SOURCE: TypeAdapter[str] = TypeAdapter(Identifier)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "criteria_at": str,
    "derived": list,
    "factor": (int, float),
    "left_out": list,
    "points_at": str,
    "prompt_at": str,
    "text_at": str,
}
"""Of entries that a reader of `$import` relies on; anybody may write metadata."""
_RESERVED_BYTES = 1024
"""Left of the metadata's limit for the names around it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The parts of a rubric, its criteria not yet checked against our limits."""

    prompt: tuple[Message, ...] | None
    criteria: Sequence[Criterion | dict[str, Any]]
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    factor: Fraction = Fraction(1)
    references: tuple[ReferenceAnswer, ...] = ()
    view: View | None = None


@dataclass(frozen=True, slots=True)
class _Criteria:
    """The criteria of a row: those that count, those that do not with their positions."""

    items: tuple[Item, ...]
    texts: tuple[str, ...]
    points: tuple[int, ...]
    factor: Fraction
    left_out: tuple[tuple[int, Any], ...]


def read_row(profile: Profile, content: Any, issues: ConversionIssues) -> Draft:
    """Read a row. Raises `Malformed` and `NotRepresentable`."""
    how: dict[str, Any] = {}
    if isinstance(content, list) and not profile.prompt:
        how["bare"] = True
        row: dict[str, Any] = {write_path(profile.criteria[0]): content}
    elif isinstance(content, dict):
        row = content
    else:
        raise Malformed("the content must be a JSON object")
    rest = _copy(row)
    prompt = _read_prompt(profile, row, rest, how)
    raw, at = _find_criteria(profile, row, rest, how)
    found = read_criteria(profile, raw, at, decode(row.get("vars")), issues)
    if found.factor != 1:
        how["factor"] = float(found.factor)
    if found.left_out:
        how["left_out"] = [{"index": index, "item": item} for index, item in found.left_out]
    tags = _read_tags(profile, row, rest, how)
    namespaces = [
        _describe_item(profile, item, text, points, found.factor)
        for item, text, points in zip(found.items, found.texts, found.points, strict=True)
    ]
    parts = [*zip(found.texts, found.points, namespaces, strict=True)]
    # Kept as they stood only where ours would be written in another form.
    if not same(_write_criteria(profile, parts, how), raw):
        how["criteria"] = raw
    items = _write_items(profile, parts, how)
    derived = []
    for name, follow in profile.derived.items():
        value = find(row, parse_path(name))
        # What follows from the criteria is computed when it is written, not kept.
        if name != at and value is not MISSING and same(value, follow(items)):
            take(rest, parse_path(name))
            derived.append(name)
    if derived:
        how["derived"] = derived
    ids = _ids(profile, found.items)
    criteria = [
        {
            "id": own_id,
            "text": _bounded_text(text, item, issues),
            "points": points,
            "category": _category(profile, item),
            "check": item.check,
            "metadata": {profile.name: own},
        }
        for own_id, text, points, item, own in zip(
            ids, found.texts, found.points, found.items, namespaces, strict=True
        )
    ]
    for place, fields in ((HOW, rest), *((f"{i.location}.{HOW}", i.rest) for i in found.items)):
        if HOW in fields:
            issues.losses.append(f"{place}: this name says how a row was read, and can say no more")
    metadata = _fit(rest | {HOW: how}, issues)
    if sum(json_bytes(each["metadata"]) for each in criteria) > MAX_METADATA_BYTES:
        issues.losses.append("the other fields of the criteria are more than metadata can hold")
        for each in criteria:
            each["metadata"] = {}
    return Draft(
        prompt,
        criteria,
        tags,
        {profile.name: metadata},
        found.factor,
        tuple(
            ReferenceAnswer(text, _source(reference, row))
            for reference in profile.references
            for text in _distinct(to_references(find(row, reference.path)))
        ),
    )


def read_criteria(
    profile: Profile, raw: Any, location: str, variables: Any, issues: ConversionIssues
) -> _Criteria:
    """Read the criteria as they stand in a row; those of no weight are left out, with a note."""
    listed = profile.layout.read(profile, raw, location, issues)
    _bound(listed)
    if profile.check is not None:
        profile.check(listed.items, issues)
    items, texts, weights = [], [], []
    left_out = list(listed.passed_over)
    # Positions in the row, which count what the layout passed over.
    taken = {position for position, _ in left_out}
    positions = [n for n in range(len(listed.items) + len(left_out)) if n not in taken]
    for position, item in zip(positions, listed.items, strict=True):
        text = to_text(rubric_text(item.text) if profile.variables else item.text, item.text_at)
        if profile.variables:
            text = render(text, variables if isinstance(variables, dict) else {}, item.text_at)
        if item.points is MISSING or (item.points is None and profile.default_points is not None):
            if profile.default_points is None and isinstance(item.raw, str) and not item.rest:
                raise Malformed(f"{item.location}: is a text alone, without points")
            if profile.default_points is None:
                raise require(MISSING, item.points_at, "a number")
            weight = Fraction(profile.default_points)
        else:
            weight = to_number(item.points, item.points_at)
        if weight < 0 and (profile.min_points or 0) > 0:
            raise Malformed(f"{item.points_at}: must not be negative")
        if weight == 0:
            issues.notes.append(
                f"{item.location}: {excerpt(text)} weighs 0 and changes no reward: it is left out "
                "of the criteria and kept in the metadata"
            )
            left_out.append((position, item.raw))
            continue
        items.append(item)
        texts.append(text)
        weights.append(weight)
    if not items:
        raise Malformed(f"{location}: holds no criterion that counts")
    factor = scaling(weights)
    if factor is None:
        issues.refusals.append(
            f"{location}: the points are no whole numbers up to {MAX_POINTS}, whatever all of them "
            f"are multiplied by; round them"
        )
        # Go on with equal points, so that the other faults are found too.
        factor, weights = Fraction(1), [Fraction(1)] * len(weights)
    elif any((weight * factor).denominator != 1 for weight in weights):
        issues.notes.append(
            f"{location}: all points are multiplied by {float(factor):g} and rounded to whole "
            f"numbers, which changes none by more than {float(WEIGHT_TOLERANCE):.1%} of it"
        )
    elif factor != 1:
        issues.notes.append(
            f"{location}: all points are multiplied by {float(factor):g}, which makes them whole "
            "numbers within the limits and leaves every reward as it is"
        )
    return _Criteria(
        tuple(items),
        tuple(texts),
        tuple(to_points(weights, factor)),
        factor,
        tuple(sorted(left_out, key=lambda each: each[0])),
    )


def write_row(
    profile: Profile,
    prompt: Sequence[Message],
    criteria: Sequence[Criterion],
    tags: Sequence[str],
    metadata: Mapping[str, Any],
) -> Any:
    """Write a rubric as a row; what was read from such a row is as it was, unless it changed."""
    own = metadata.get(profile.name)
    imported = isinstance(own, dict)
    fields: dict[str, Any] = own if isinstance(own, dict) else {}
    row = _copy({name: value for name, value in fields.items() if name != HOW})
    how = _how(fields)
    if profile.prompt:
        row = _put_prompt(profile, row, prompt, how)
    parts = [(c.text, c.points, _namespace(profile, c, imported)) for c in criteria]
    items = _write_items(profile, parts, how)
    row = _put_criteria(profile, row, parts, how)
    for name, follow in profile.derived.items():
        if name in how.get("derived", ()):
            row = put(row, parse_path(name), follow(items))
    if profile.tags is not None:
        row = _put_tags(profile, row, tags, how, imported)
    # It came as a list alone, and nothing stands beside the list now.
    if how.get("bare") is True and len(row) == 1:
        return next(iter(row.values()))
    return row


def _namespace(profile: Profile, criterion: Criterion, imported: bool) -> dict[str, Any]:
    """Return what a criterion's metadata says of this format, or what a new one says."""
    own = criterion.metadata.get(profile.name)
    known = isinstance(own, dict)
    fields = dict(own) if isinstance(own, dict) else dict(profile.fresh)
    label = profile.label
    # An id of ours follows the criterion; a name that the row gave stays.
    if label is not None and (
        not known or (_is_our_id(fields.get(label)) and fields[label] != criterion.id)
    ):
        fields[label] = criterion.id
    if profile.category_tag:
        tag = f"category:{criterion.category}"
        tags = fields.get("tags")
        listed = tags if isinstance(tags, list) else []
        kept = [each for each in listed if not _is_category_tag(each)]
        was = [each for each in listed if _is_category_tag(each)]
        # A row that named no category stays without one while ours is the default.
        if not known or (was != [tag] and (was or criterion.category != CATEGORIES[0])):
            fields["tags"] = [*kept, tag]
    return fields


def _is_category_tag(tag: Any) -> bool:
    return isinstance(tag, str) and tag.removeprefix("category:") in CATEGORIES


def _is_our_id(name: Any) -> bool:
    return isinstance(name, str) and _OUR_ID.fullmatch(name) is not None


def _how(namespace: Any) -> dict[str, Any]:
    """Return what a namespace says of its reading; entries of another type are passed over."""
    found = namespace.get(HOW) if isinstance(namespace, dict) else None
    if not isinstance(found, dict):
        return {}
    return {
        name: value for name, value in found.items() if isinstance(value, _TYPES.get(name, object))
    }


def _read_prompt(
    profile: Profile, row: dict[str, Any], rest: dict[str, Any], how: dict[str, Any]
) -> tuple[Message, ...] | None:
    if not profile.prompt:
        return None
    path, value = first(row, profile.prompt)
    if value is MISSING or value is None:
        columns = numbered_columns(row, *_column_names(profile))
        if columns:
            for name in columns:
                take(rest, (name,))
            how["prompt"] = columns
            return read_numbered(columns, _column_names(profile)[0])
        if value is None:
            take(rest, path)
            how["prompt"] = None
        else:
            # The prompt was given beside the row, and must not be written into it.
            how["no_prompt"] = True
        return None
    location = write_path(path)
    if profile.variables and isinstance(value, str):
        variables = decode(row.get("vars"))
        messages = to_messages(
            render(value, variables if isinstance(variables, dict) else {}, location), location
        )
    else:
        messages = to_messages(value, location)
    take(rest, path)
    if path != profile.prompt[0]:
        how["prompt_at"] = location
    if not same(_written_prompt(profile, messages), value):
        how["prompt"] = value
    return messages


def _column_names(profile: Profile) -> tuple[str, str]:
    """Return the beginnings of numbered columns: of prompts and of the responses between."""
    asked, _, answered = write_path(profile.prompt[0]).partition("+")
    return (
        asked.removesuffix("*") if asked.endswith("*") else "prompt_",
        answered.removesuffix("*") if answered.endswith("*") else "response_",
    )


def _written_prompt(profile: Profile, messages: Sequence[Message]) -> Any:
    if profile.question and [message.role for message in messages] == ["user"]:
        return messages[0].content
    return write_messages(messages)


def _put_prompt(
    profile: Profile, row: dict[str, Any], prompt: Sequence[Message], how: dict[str, Any]
) -> Any:
    path = _path(how.get("prompt_at"), profile.prompt[0])
    if "prompt" in how:
        # As it stood, while that still says what the prompt says.
        kept = how["prompt"]
        if kept is None:
            return put(row, path, None)
        try:
            if isinstance(kept, dict) and kept and all(map(_is_text, kept.values())):
                names = _column_names(profile)
                if all(name.startswith(names) for name in kept) and read_numbered(
                    kept, names[0]
                ) == tuple(prompt):
                    return row | kept
            variables = decode(row.get("vars"))
            value = (
                render(kept, variables if isinstance(variables, dict) else {}, "prompt")
                if profile.variables and isinstance(kept, str)
                else kept
            )
            if to_messages(value, "prompt") == tuple(prompt):
                return put(row, path, kept)
        except Malformed:
            pass
    if how.get("no_prompt") is True:
        return row
    return put(row, path, _written_prompt(profile, prompt))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _path(kept: str | None, default: Path) -> Path:
    """Return the path that the metadata says, if it says one."""
    if kept is not None:
        try:
            return parse_path(kept)
        except ValueError:
            pass
    return default


def _find_criteria(
    profile: Profile, row: dict[str, Any], rest: dict[str, Any], how: dict[str, Any]
) -> tuple[Any, str]:
    """Return the criteria as they stand, and their path; they are taken out of `rest`."""
    if profile.columns:
        names = next((c for c in profile.columns if row.get(c[0]) is not None), profile.columns[0])
        for name in names:
            take(rest, (name,))
        return {name: row[name] for name in names if name in row}, names[0]
    path, value = first(row, profile.criteria)
    at = write_path(path)
    if value is MISSING or value is None:
        raise require(value, at, "a list")
    take(rest, path)
    if path != profile.criteria[0]:
        how["criteria_at"] = at
    return value, at


def _put_criteria(
    profile: Profile,
    row: Any,
    parts: Sequence[tuple[str, int, dict[str, Any]]],
    how: dict[str, Any],
) -> Any:
    value = _write_criteria(profile, parts, how)
    if "criteria" in how:
        try:
            found = read_criteria(
                profile, how["criteria"], "criteria", decode(row.get("vars")), ConversionIssues()
            )
            if [*zip(found.texts, found.points, strict=True)] == [part[:2] for part in parts]:
                value = how["criteria"]
        except (Malformed, NotRepresentable):
            pass
    if profile.columns:
        return row | value
    return put(row, _path(how.get("criteria_at"), profile.criteria[0]), value)


def _write_criteria(
    profile: Profile, parts: Sequence[tuple[str, int, dict[str, Any]]], how: dict[str, Any]
) -> Any:
    return profile.layout.write(profile, _write_items(profile, parts, how))


def _write_items(
    profile: Profile, parts: Sequence[tuple[str, int, dict[str, Any]]], how: dict[str, Any]
) -> list[Any]:
    factor = how.get("factor", 1)
    # Anybody may write metadata: what is no factor counts as 1.
    usable = (
        isinstance(factor, int | float)
        and not isinstance(factor, bool)
        and SMALLEST_WEIGHT <= factor <= LARGEST_WEIGHT
    )
    scale = as_factor(factor) if usable else Fraction(1)
    items = [_write_item(profile, *part, scale or Fraction(1)) for part in parts]
    for each in how.get("left_out", ()):
        if isinstance(each, dict) and isinstance(each.get("index"), int):
            # What weighs nothing goes back to its place.
            items.insert(max(each["index"], 0), _copy(each.get("item")))
    return items


def _write_item(
    profile: Profile, text: str, points: int, namespace: dict[str, Any], factor: Fraction
) -> Any:
    how = _how(namespace)
    fields = {name: _copy(value) for name, value in namespace.items() if name != HOW}
    if profile.columns:
        return fields
    unchanged = how.get("points_are") == points
    if how.get("plain") is True and unchanged:
        return text
    item: Any = put(
        fields,
        _path(how.get("text_at"), profile.text[0]),
        how["text"] if "text" in how and how.get("text_is") == text else text,
    )
    if profile.points is None or (how.get("no_points") is True and unchanged):
        return item
    return put(
        item,
        _path(how.get("points_at"), profile.points[0]),
        how["points"]
        if "points" in how and unchanged
        else _written_points(profile, points, factor),
    )


def _written_points(profile: Profile, points: int, factor: Fraction) -> int | float:
    weight = Fraction(points) / factor
    return float(weight) if profile.whole_floats or weight.denominator != 1 else int(weight)


def _describe_item(
    profile: Profile, item: Item, text: str, points: int, factor: Fraction
) -> dict[str, Any]:
    """Return a criterion's metadata: its other fields, and how it was read."""
    how: dict[str, Any] = {}
    other = {name: value for name, value in item.rest.items() if name != HOW}
    if profile.columns:
        return other
    if isinstance(item.raw, str) and not isinstance(decode(item.raw), dict):
        plain = {HOW: {"plain": True, "points_are": points}} if not profile.layout.joined else {}
        return other | plain
    raw = decode(item.raw)
    text_path, _ = first(raw, profile.text)
    if text_path != profile.text[0]:
        how["text_at"] = write_path(text_path)
    if item.text != text:
        how |= {"text": item.text, "text_is": text}
    if profile.points is not None:
        points_path, _ = first(raw, profile.points)
        if item.points is MISSING:
            how |= {"no_points": True, "points_are": points}
        else:
            if points_path != profile.points[0]:
                how["points_at"] = write_path(points_path)
            if not same(item.points, _written_points(profile, points, factor)):
                how |= {"points": item.points, "points_are": points}
    return other | ({HOW: how} if how else {})


def _read_tags(
    profile: Profile, row: dict[str, Any], rest: dict[str, Any], how: dict[str, Any]
) -> list[str]:
    if profile.tags is None:
        return []
    value = find(row, profile.tags)
    if value is MISSING:
        return []
    listed = decode(value) or []
    if not isinstance(listed, list) or not all(isinstance(tag, str) for tag in listed):
        raise require(value, write_path(profile.tags), "a list of texts")
    take(rest, profile.tags)
    tags = _fitting(listed)
    if not same(tags, value):
        how["tags"] = value
    else:
        how["has_tags"] = True
    return tags


def _fitting(tags: Sequence[str]) -> list[str]:
    """Return the tags that ours can be, each once."""
    kept = []
    for tag in dict.fromkeys(tags):
        try:
            kept.append(_TAG.validate_python(tag))
        except ValidationError:
            continue
    return kept[:MAX_TAGS]


def _put_tags(
    profile: Profile, row: Any, tags: Sequence[str], how: dict[str, Any], imported: bool
) -> Any:
    assert profile.tags is not None
    kept = how.get("tags")
    listed = decode(kept) or []
    if "tags" in how and isinstance(listed, list):
        was = [tag for tag in listed if isinstance(tag, str)]
        ours = _fitting(was)
        if list(tags) == ours:
            return put(row, profile.tags, kept)
        # Those that cannot be tags of ours stay in the row.
        others = [tag for tag in was if tag not in ours]
        return put(row, profile.tags, [*tags, *others])
    if imported and not tags and how.get("has_tags") is not True:
        return row
    return put(row, profile.tags, list(tags))


def _category(profile: Profile, item: Item) -> str:
    tags = item.rest.get("tags") if profile.category_tag else None
    if not isinstance(tags, list):
        return CATEGORIES[0]
    return next((c for c in CATEGORIES if f"category:{c}" in tags), CATEGORIES[0])


def _ids(profile: Profile, items: Sequence[Item]) -> list[str | None]:
    names = [item.rest.get(profile.label) if profile.label else None for item in items]
    if all(map(_is_our_id, names)) and len(set(names)) == len(names):
        return names
    return [None] * len(items)


def _bound(listed: ItemList) -> None:
    """Refuse too many criteria before any of them is looked at."""
    if len(listed.items) > MAX_CRITERIA:
        raise NotRepresentable(
            [f"there are {len(listed.items)} criteria; a rubric has {MAX_CRITERIA} at most"]
        )


def _bounded_text(text: str, item: Item, issues: ConversionIssues) -> str:
    if len(text) > MAX_TEXT_LENGTH:
        issues.refusals.append(
            f"{item.text_at}: has {len(text)} characters; a criterion may have {MAX_TEXT_LENGTH}"
        )
        return text[:MAX_TEXT_LENGTH]
    return text


def _fit(fields: dict[str, Any], issues: ConversionIssues) -> dict[str, Any]:
    """Leave out the largest fields, as losses, until the others fit."""
    sizes = {name: json_bytes(value) + len(name) + 4 for name, value in fields.items()}
    for name in sorted(sizes, key=lambda each: sizes[each], reverse=True):
        if sum(sizes.values()) <= MAX_METADATA_BYTES - _RESERVED_BYTES:
            break
        issues.losses.append(
            f"{name}: takes {sizes.pop(name)} bytes, which is more than metadata can hold "
            f"({MAX_METADATA_BYTES} bytes in all)"
        )
    return {name: value for name, value in fields.items() if name in sizes}


def _source(reference: Reference, row: dict[str, Any]) -> str:
    """Return whose the answers are: the model that the row names, else what the format says."""
    _, named = first(row, reference.named_at) if reference.named_at else ((), None)
    try:
        return _SOURCE.validate_python(named)
    except ValidationError:
        return reference.source


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
