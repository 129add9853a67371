"""Read a rubric from another format."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from markscheme.exchange.base import (
    ConversionIssues,
    Imported,
    Malformed,
    NotRepresentable,
    assign_ids,
    check_format,
    excerpt,
    join_excerpts,
)
from markscheme.exchange.shapes import HealthBench, Native, Rar, Ropd, Row, Verifiers
from markscheme.schema.base import (
    MAX_CRITERIA,
    MAX_POINTS,
    MAX_TAGS,
    MAX_TEXT_LENGTH,
    Message,
    Prompt,
    Tag,
)
from markscheme.schema.exchange import check_json
from markscheme.schema.rubrics import Criteria, Criterion
from markscheme.vocabulary import CATEGORIES, Category, ExchangeFormat, View

_OUR_ID = re.compile(r"c[1-9][0-9]{0,2}")
_ROPD_ID = re.compile(r"[cC]0*([1-9][0-9]{0,2})")
_ROPD_CATEGORIES: dict[str, Category] = {
    "task fulfilment": "task_fulfilment",
    "task fulfillment": "task_fulfilment",
    "task completion": "task_fulfilment",
    "task fulfillment & requirement compliance": "task_fulfilment",
    "observable quality": "observable_quality",
    "observable response quality": "observable_quality",
    "general reasoning": "general_reasoning",
    "general reasoning quality": "general_reasoning",
}
"""Names of categories in ROPD's paper, in its released prompts, and here."""
_HEALTHBENCH_KEYS = {
    "canary",
    "prompt_id",
    "completion",
    "completion_id",
    "category",
    "binary_labels",
    "anonymized_physician_ids",
    "ideal_completions_data",
    "ideal_completions_group",
    "ideal_completions_ref_completions",
}
"""Other fields of HealthBench rows: about responses and the benchmark, not the rubric."""
_CRITERIA: TypeAdapter[list[Criterion]] = TypeAdapter(Criteria)
_PROMPT: TypeAdapter[str | list[Message]] = TypeAdapter(Prompt)
_TAG: TypeAdapter[str] = TypeAdapter(Tag)

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class _Draft:
    """The parts of a rubric, its criteria not yet checked against our limits."""

    prompt: str | list[Message] | None
    criteria: Sequence[Criterion | dict[str, Any]]
    tags: Sequence[str] = ()
    view: View | None = None


def load(
    content: object,
    format: ExchangeFormat,
    *,
    prompt: str | Sequence[Message] | None = None,
    allow_loss: bool = False,
) -> Imported:
    """Read a rubric from a format.

    Args:
        content: The parsed JSON.
        format: Its format.
        prompt: The prompt, for formats that hold none, and only for them.
        allow_loss: Drop what we cannot hold instead of refusing it.

    Raises:
        Malformed: The content is not of the format.
        NotRepresentable: As in `dump`.
    """
    read = _READERS[check_format(format)]
    try:
        check_json(content)
    except ValueError as error:
        raise Malformed(f"the content: {error}") from None
    if not isinstance(content, dict):
        raise Malformed("the content must be a JSON object")
    issues = ConversionIssues()
    try:
        draft = read(content, issues)
    except ValidationError as error:
        raise Malformed(_messages_of(error)[0]) from None
    messages = _messages(draft.prompt, prompt, format)
    losses = issues.accept_losses(allow_loss)
    try:
        criteria = _CRITERIA.validate_python(list(draft.criteria))
    except ValidationError as error:
        raise NotRepresentable(_messages_of(error, "criteria")) from None
    return Imported(messages, assign_ids(criteria), tuple(draft.tags), losses, draft.view)


def _messages(
    own: str | list[Message] | None, given: str | Sequence[Message] | None, format: ExchangeFormat
) -> tuple[Message, ...]:
    if own is not None and given is not None:
        raise Malformed(
            f"a rubric in the format {format} brings its prompt itself; give none beside it",
            "prompt",
        )
    prompt = own
    if given is not None:
        try:
            prompt = _PROMPT.validate_python(given if isinstance(given, str) else list(given))
            check_json(
                [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
            )
        except ValidationError as error:
            raise Malformed(_messages_of(error, "prompt")[0], "prompt") from None
        except ValueError as error:
            raise Malformed(f"the prompt: {error}", "prompt") from None
    if prompt is None:
        raise Malformed(
            f"the format {format} holds no prompt: give the one that the rubric is for", "prompt"
        )
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)


def _read_native(content: dict[str, Any], _: ConversionIssues) -> _Draft:
    native = Native.model_validate(content)
    return _Draft(native.prompt, native.criteria, native.tags, native.view)


def _read_ropd(content: dict[str, Any], issues: ConversionIssues) -> _Draft:
    ropd = Ropd.model_validate(content)
    total = sum(c.points for c in ropd.rubrics)
    if ropd.maximum_score != total:
        raise Malformed(
            f"maximum_score is {ropd.maximum_score}, and the points come to {total}: "
            "a criterion or its points may be missing"
        )
    criteria: dict[str, dict[str, Any]] = {}
    for row in ropd.rubrics:
        match = _ROPD_ID.fullmatch(row.criterion_id)
        if match is None:
            raise Malformed(f"criterion_id {excerpt(row.criterion_id)}: ids are c1 to c999")
        name = f"c{match[1]}"
        if name in criteria:
            raise Malformed(f"criterion_id {name} is there twice")
        category = _ROPD_CATEGORIES.get(" ".join(row.category.lower().replace("_", " ").split()))
        if category is None:
            issues.losses.append(
                f"criterion {name}: the category {excerpt(row.category)} is none of "
                f"{', '.join(CATEGORIES)}; it would be task_fulfilment"
            )
        criteria[name] = {
            "id": name,
            "text": _text(row.criterion, f"criterion {name}", issues),
            "points": row.points,
            "category": category or "task_fulfilment",
        }
    return _Draft(None, list(criteria.values()))


def _read_healthbench(content: dict[str, Any], issues: ConversionIssues) -> _Draft:
    bench = HealthBench.model_validate(content)
    _note_extra(bench, "the row", issues, _HEALTHBENCH_KEYS)
    criteria = []
    for number, row in enumerate(_bounded(bench.rubrics), 1):
        location = f"criterion {number}"
        _note_extra(row, location, issues)
        ours = next((c for c in CATEGORIES if f"category:{c}" in row.tags), None)
        if others := [tag for tag in row.tags if tag != f"category:{ours}"]:
            issues.losses.append(
                f"{location}: we have no place for the tags of a criterion: {join_excerpts(others)}"
            )
        criteria.append(
            {
                "text": _text(row.criterion, location, issues),
                "points": _points(row.points, location, issues),
                "category": ours or "task_fulfilment",
            }
        )
    return _Draft(bench.prompt, criteria, _tags(bench.example_tags, issues))


def _read_rar(content: dict[str, Any], issues: ConversionIssues) -> _Draft:
    rar = Rar.model_validate(content)
    _note_extra(rar, "the row", issues)
    criteria = []
    ids = _ids([row.title for row in _bounded(rar.rubric)], "title", issues)
    for number, (own, row) in enumerate(zip(ids, rar.rubric, strict=True), 1):
        location = f"criterion {number}"
        _note_extra(row, location, issues)
        criteria.append(
            {
                "id": own,
                "text": _text(row.description, location, issues),
                "points": _points(row.weight, location, issues),
            }
        )
    return _Draft(rar.question, criteria)


def _read_verifiers(content: dict[str, Any], issues: ConversionIssues) -> _Draft:
    verifiers = Verifiers.model_validate(content)
    _note_extra(verifiers, "the file", issues)
    names = [row.name for row in _bounded(verifiers.criteria)]
    if len(set(names)) != len(names):
        raise Malformed("names of criteria must be unique")
    criteria = []
    for number, (own, row) in enumerate(
        zip(_ids(names, "name", issues), verifiers.criteria, strict=True), 1
    ):
        location = f"criterion {number}"
        _note_extra(row, location, issues)
        if [choice.strip().lower() for choice in row.choices] != ["no", "yes"]:
            issues.refusals.append(
                f"{location}: its choices are {join_excerpts(row.choices)}; a criterion here is "
                "met or not: rephrase it as a question with the choices no and yes, in this order"
            )
        criteria.append(
            {
                "id": own,
                "text": _text(row.text, location, issues),
                "points": _points(row.weight, location, issues),
            }
        )
    return _Draft(None, criteria)


_READERS: dict[str, Callable[[dict[str, Any], ConversionIssues], _Draft]] = {
    "native": _read_native,
    "ropd": _read_ropd,
    "healthbench": _read_healthbench,
    "rar": _read_rar,
    "verifiers": _read_verifiers,
}


def _bounded(rows: list[R]) -> list[R]:
    """Refuse too many rows before any of them is looked at."""
    if len(rows) > MAX_CRITERIA:
        raise NotRepresentable(
            [f"there are {len(rows)} criteria; a rubric has {MAX_CRITERIA} at most"]
        )
    return rows


def _text(text: str, location: str, issues: ConversionIssues) -> str:
    if len(text) > MAX_TEXT_LENGTH:
        issues.refusals.append(
            f"{location}: its text has {len(text)} characters; there may be {MAX_TEXT_LENGTH}"
        )
    return text


def _points(weight: float, location: str, issues: ConversionIssues) -> int:
    """Return a weight as points; a weight that is not a whole number is refused later."""
    if not weight.is_integer():
        issues.refusals.append(
            f"{location}: {weight:g} is no whole number of points; multiply all of the rubric's "
            "by the same number"
        )
    elif weight == 0:
        issues.refusals.append(f"{location}: it is worth 0 points; leave it out")
    elif abs(weight) > MAX_POINTS:
        issues.refusals.append(
            f"{location}: {weight:g} points; there are at most {MAX_POINTS}: divide all of the "
            "rubric's by the same number"
        )
    else:
        return int(weight)
    return 1


def _ids(names: Sequence[str], word: str, issues: ConversionIssues) -> list[str | None]:
    """Return the names if they are ids like ours; else `None` for each, as a noted loss."""
    if all(_OUR_ID.fullmatch(name) for name in names) and len(set(names)) == len(names):
        return list(names)
    issues.losses.extend(
        f"criterion {number}: we number criteria; its {word} {excerpt(name)} has no place"
        for number, name in enumerate(names, 1)
        if name.strip()
    )
    return [None] * len(names)


def _tags(given: Sequence[str], issues: ConversionIssues) -> list[str]:
    kept: list[str] = []
    for tag in dict.fromkeys(given):
        try:
            _TAG.validate_python(tag)
        except ValidationError:
            issues.losses.append(
                f"the tag {excerpt(tag)}: ours have up to 64 letters, digits and . : / _ -"
            )
            continue
        if len(kept) == MAX_TAGS:
            issues.losses.append(f"the tag {excerpt(tag)}: there are {MAX_TAGS} already")
        else:
            kept.append(tag)
    return kept


def _note_extra(
    row: Row, location: str, issues: ConversionIssues, passed_over: Collection[str] = ()
) -> None:
    if extra := [name for name in row.model_extra or {} if name not in passed_over]:
        issues.losses.append(f"{location}: we have no place for {join_excerpts(extra)}")


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
