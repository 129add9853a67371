"""Read a rubric from another format."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from markscheme.exchange.base import (
    ConversionIssues,
    Imported,
    Malformed,
    NotRepresentable,
    assign_ids,
    check_format,
    excerpt,
)
from markscheme.exchange.meta_eval import read_meta_eval
from markscheme.exchange.paths import first, write_path
from markscheme.exchange.profiles import PROFILES, mapped_profile
from markscheme.exchange.promptfoo import config_rows
from markscheme.exchange.rows import HOW, Draft, read_row
from markscheme.exchange.shapes import Native, Ropd
from markscheme.schema.base import MAX_TEXT_LENGTH, Message, Prompt
from markscheme.schema.metadata import MAX_METADATA_BYTES, check_json, json_bytes
from markscheme.schema.rubrics import Criteria, Criterion
from markscheme.vocabulary import CATEGORIES, Category, ExchangeFormat, MapField

_ROPD_ID = re.compile(r"[cC]0*([1-9][0-9]{0,2})")
_ROPD_CATEGORIES: dict[str, Category] = {
    "task fulfilment": "task_fulfilment",
    "task fulfillment": "task_fulfilment",
    "task completion": "task_fulfilment",
    "task fulfillment & requirement compliance": "task_fulfilment",
    "task fulfillment and requirement compliance scenario": "task_fulfilment",
    "observable quality": "observable_quality",
    "observable response quality": "observable_quality",
    "observable response quality scenario": "observable_quality",
    "general reasoning": "general_reasoning",
    "general reasoning quality": "general_reasoning",
    "general reasoning quality scenario": "general_reasoning",
}
"""Names of categories in ROPD's paper, in its released prompts, and here."""
_CRITERIA: TypeAdapter[list[Criterion]] = TypeAdapter(Criteria)
_PROMPT: TypeAdapter[str | list[Message]] = TypeAdapter(Prompt)


def load(
    content: object,
    format: ExchangeFormat,
    *,
    prompt: str | Sequence[Message] | None = None,
    allow_loss: bool = False,
    mapping: Mapping[MapField, str] | None = None,
) -> Imported:
    """Read a rubric from a format.

    Args:
        content: The parsed JSON.
        format: Its format.
        prompt: The prompt, for contents that hold none, and only for them.
        allow_loss: Drop what we cannot hold instead of refusing it.
        mapping: For the format `mapped`: where the content has its parts (`mapped_profile`).

    Raises:
        Malformed: The content is not of the format.
        NotRepresentable: As in `dump`.
    """
    check_format(format)
    if (mapping is None) == (format == "mapped"):
        raise Malformed(
            "the format mapped needs a mapping"
            if mapping is None
            else f"a mapping is for the format mapped, not for {format}"
        )
    try:
        check_json(content)
    except ValueError as error:
        raise Malformed(f"the content: {error}") from None
    issues = ConversionIssues()
    try:
        draft = _read(content, format, mapping, issues)
    except ValidationError as error:
        raise Malformed(_messages_of(error)[0]) from None
    messages = _messages(draft.prompt, prompt, format, _prompt_place(format, mapping))
    size = json_bytes(draft.metadata or {})
    if size > MAX_METADATA_BYTES:
        issues.refusals.append(
            f"the other fields take {size} bytes; metadata may take {MAX_METADATA_BYTES}"
        )
    losses = issues.accept_losses(allow_loss)
    try:
        criteria = _CRITERIA.validate_python(list(draft.criteria))
    except ValidationError as error:
        raise NotRepresentable(_messages_of(error, "criteria")) from None
    provenance: dict[str, Any] = {} if format == "native" else {"format": format}
    if draft.factor != 1:
        provenance["points_factor"] = float(draft.factor)
    return Imported(
        messages,
        assign_ids(criteria),
        tuple(draft.tags),
        losses,
        tuple(issues.notes),
        draft.metadata or {},
        provenance,
        draft.references,
        view=draft.view,
    )


def row_id(
    content: object, format: ExchangeFormat, mapping: Mapping[MapField, str] | None = None
) -> str | None:
    """Return the name that a content gives itself, for messages; None where it has none."""
    profile = mapped_profile(mapping) if mapping is not None else PROFILES.get(format)
    if profile is None or not profile.id:
        return None
    _, found = first(content, profile.id)
    if isinstance(found, str):
        return excerpt(found)[1:-1]
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else None


def _read(
    content: object,
    format: ExchangeFormat,
    mapping: Mapping[MapField, str] | None,
    issues: ConversionIssues,
) -> Draft:
    if mapping is not None:
        draft = read_row(mapped_profile(mapping), content, issues)
        metadata = dict(draft.metadata or {})
        metadata["mapped"] = metadata["mapped"] | {
            HOW: metadata["mapped"].get(HOW, {}) | {"map": dict(mapping)}
        }
        return replace(draft, metadata=metadata)
    if format == "promptfoo":
        content = _lone_test(content)
    if format in PROFILES:
        return read_row(PROFILES[format], content, issues)
    if format == "healthbench-meta-eval":
        return read_meta_eval(content, issues)
    if not isinstance(content, dict):
        raise Malformed("the content must be a JSON object")
    return _READERS[format](content, issues)


def _lone_test(content: object) -> object:
    """Return the test of a configuration that makes one rubric, or the content if it is a test."""
    if not isinstance(content, dict) or not ({"tests", "scenarios"} & content.keys()):
        return content
    rows = config_rows(content)
    if len(rows) != 1:
        raise Malformed(
            f"the configuration makes {len(rows)} rubrics, one for each prompt and test: send each "
            "test by itself, with its prompt in the field prompt"
        )
    return rows[0]


def _prompt_place(format: ExchangeFormat, mapping: Mapping[MapField, str] | None) -> str:
    """Return where a format has its prompt; empty where it has none."""
    if mapping is not None:
        return mapping.get("prompt", "")
    paths = PROFILES[format].prompt if format in PROFILES else ()
    return write_path(paths[0]) if paths else ""


def _messages(
    own: tuple[Message, ...] | None,
    given: str | Sequence[Message] | None,
    format: ExchangeFormat,
    place: str,
) -> tuple[Message, ...]:
    if own is not None and given is not None:
        raise Malformed(
            f"a rubric in the format {format} brings its prompt itself; give none beside it",
            "prompt",
        )
    if own is not None:
        return own
    if given is None:
        raise Malformed(
            f"{place}: is missing; give the prompt that the rubric is for"
            if place
            else f"the format {format} holds no prompt: give the one that the rubric is for",
            "prompt",
        )
    try:
        prompt = _PROMPT.validate_python(given if isinstance(given, str) else list(given))
        check_json([prompt] if isinstance(prompt, str) else [m.model_dump() for m in prompt])
    except ValidationError as error:
        raise Malformed(_messages_of(error, "prompt")[0], "prompt") from None
    except ValueError as error:
        raise Malformed(f"the prompt: {error}", "prompt") from None
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)


def _read_native(content: dict[str, Any], _: ConversionIssues) -> Draft:
    native = Native.model_validate(content)
    prompt = native.prompt
    return Draft(
        (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt),
        native.criteria,
        native.tags,
        native.metadata,
        view=native.view,
    )


def _read_ropd(content: dict[str, Any], issues: ConversionIssues) -> Draft:
    ropd = Ropd.model_validate(content)
    total = sum(c.points for c in ropd.rubrics)
    if ropd.maximum_score != total:
        raise Malformed(
            f"maximum_score is {ropd.maximum_score}, and the points come to {total}: "
            "a criterion or its points may be missing"
        )
    criteria: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(ropd.rubrics):
        match = _ROPD_ID.fullmatch(row.criterion_id)
        if match is None:
            raise Malformed(f"criterion_id {excerpt(row.criterion_id)}: ids are c1 to c999")
        # C1 and c01 name c1 here.
        name = f"c{match[1]}"
        if name in criteria:
            raise Malformed(f"criterion_id {name} is there twice")
        category = _ROPD_CATEGORIES.get(" ".join(row.category.lower().replace("_", " ").split()))
        if category is None:
            issues.notes.append(
                f"rubrics[{number}].category: {excerpt(row.category)} is none of "
                f"{', '.join(CATEGORIES)}; it counts as {CATEGORIES[0]} and is kept in the metadata"
            )
        if len(row.criterion) > MAX_TEXT_LENGTH:
            issues.refusals.append(
                f"rubrics[{number}].criterion: has {len(row.criterion)} characters; a criterion "
                f"may have {MAX_TEXT_LENGTH}"
            )
        own: dict[str, Any] = {}
        if row.criterion_id != name:
            own["criterion_id"] = row.criterion_id
        if row.category != (category or CATEGORIES[0]):
            own["category"] = row.category
        criteria[name] = {
            "id": name,
            "text": row.criterion[:MAX_TEXT_LENGTH],
            "points": row.points,
            "category": category or CATEGORIES[0],
            "metadata": {"ropd": own} if own else {},
        }
    return Draft(None, list(criteria.values()))


_READERS: dict[str, Callable[[dict[str, Any], ConversionIssues], Draft]] = {
    "native": _read_native,
    "ropd": _read_ropd,
}


def _messages_of(error: ValidationError, root: str = "") -> list[str]:
    """Return what a model says of its input, with places such as `rubrics[2].points: …`."""
    sentences = []
    for found in error.errors(include_input=False, include_url=False, include_context=False):
        location = root
        for part in found["loc"]:
            location += f"[{part}]" if isinstance(part, int) else f".{excerpt(part)[1:-1]}"
        said = found["msg"].removeprefix("Value error, ").replace("Field required", "is missing")
        sentences.append(f"{location.lstrip('.')}: {said}" if location else said)
    return sentences
