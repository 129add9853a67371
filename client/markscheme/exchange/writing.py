"""Write a rubric in another format."""

from collections.abc import Mapping, Sequence
from typing import Any

from markscheme.exchange.base import (
    NATIVE,
    ROPD,
    ConversionIssues,
    Exported,
    Malformed,
    NotRepresentable,
    assign_ids,
    check_format,
)
from markscheme.exchange.instructions import instruction_criterion
from markscheme.exchange.meta_eval import write_meta_eval
from markscheme.exchange.profiles import PROFILES, Profile, mapped_profile
from markscheme.exchange.rows import HOW, read_row, write_row
from markscheme.exchange.values import write_messages
from markscheme.schema.rubrics import Criterion, Rubric
from markscheme.vocabulary import MAP_FIELDS, ExchangeFormat

ROPD_POINTS, ROPD_CRITERIA = 5, (4, 12)
_META_EVAL = "HealthBench's meta-eval"


def dump(rubric: Rubric, format: ExchangeFormat, *, allow_loss: bool = False) -> Exported:
    """Return the rubric in a format, and what was left out.

    What a rubric read from the same format held beside it, in its metadata, is written again.

    Raises `NotRepresentable`; with `allow_loss` only for what would change a reward.
    """
    check_format(format)
    issues = ConversionIssues()
    criteria = assign_ids(rubric.criteria)
    if format == "native":
        content: Any = _write_native(rubric, criteria)
    elif format == "ropd":
        _note_ropd(rubric, criteria, issues)
        _note_metadata("ROPD", format, rubric.metadata, criteria, issues)
        content = _write_ropd(criteria)
    elif format == "healthbench-meta-eval":
        _note_parts(_META_EVAL, rubric, criteria, issues, ids=False, categories=False, tags=False)
        _note_metadata(_META_EVAL, format, rubric.metadata, criteria, issues)
        _require_one_point(_META_EVAL, criteria, issues)
        content = write_meta_eval(rubric.prompt, criteria, rubric.metadata)
    else:
        profile = _profile(format, rubric.metadata)
        _note_profile(profile, rubric, criteria, issues)
        losses = issues.accept_losses(allow_loss)
        content = write_row(profile, rubric.prompt, criteria, rubric.tags, rubric.metadata)
        _require_readable(profile, rubric, criteria, content)
        return Exported(content, losses)
    return Exported(content, issues.accept_losses(allow_loss))


def _require_readable(
    profile: Profile, rubric: Rubric, criteria: Sequence[Criterion], content: Any
) -> None:
    """Raise `NotRepresentable` where the row would be read as another rubric.

    A text may look like the format's own marks: numbered lines, a template, JSON.
    """
    try:
        found = read_row(profile, content, ConversionIssues())
    except Malformed as error:
        raise NotRepresentable([f"{profile.title} would not read it: {error}"]) from None
    if found.prompt not in (None, tuple(rubric.prompt)):
        raise NotRepresentable([f"{profile.title} would read another prompt"])
    read = [(row["text"], row["points"]) for row in found.criteria if isinstance(row, dict)]
    for number, criterion in enumerate(criteria):
        if read[number : number + 1] != [(criterion.text, criterion.points)]:
            raise NotRepresentable(
                [f"criterion {criterion.id}: {profile.title} would read another text or points"]
            )


def _profile(format: ExchangeFormat, metadata: Mapping[str, Any]) -> Profile:
    if format != "mapped":
        return PROFILES[format]
    own = metadata.get("mapped")
    how = own.get(HOW) if isinstance(own, dict) else None
    mapping = how.get("map") if isinstance(how, dict) else None
    if not isinstance(mapping, dict) or not all(
        name in MAP_FIELDS and isinstance(path, str) for name, path in mapping.items()
    ):
        raise NotRepresentable(["the rubric was not imported with a mapping"])
    try:
        return mapped_profile(mapping)
    except Malformed as error:
        raise NotRepresentable([str(error)]) from None


def _note_profile(
    profile: Profile, rubric: Rubric, criteria: Sequence[Criterion], issues: ConversionIssues
) -> None:
    name, refuse = profile.title, issues.refusals.append
    _note_parts(
        name,
        rubric,
        criteria,
        issues,
        ids=profile.label is not None,
        categories=profile.category_tag,
        tags=profile.tags is not None,
        checks=bool(profile.columns),
    )
    imported = isinstance(rubric.metadata.get(profile.name), dict)
    if (
        profile.lone_question
        and not imported
        and [message.role for message in rubric.prompt] != ["user"]
    ):
        refuse(f"{name} holds one question; the prompt has other messages")
    for criterion in criteria:
        location = f"criterion {criterion.id}"
        if criterion.points < (profile.min_points or criterion.points):
            refuse(f"{location}: {name} knows no negative points ({criterion.points})")
        if not criterion.text.strip():
            refuse(f"{location}: {name} takes no blank text")
        if profile.columns:
            own = criterion.metadata.get(profile.name)
            if not isinstance(own, dict) or not isinstance(own.get("instruction_id"), str):
                refuse(f"{location}: {name} has no instruction that says the same")
            elif instruction_criterion(
                {"instruction_id": own["instruction_id"], "kwargs": _object(own.get("kwargs"))},
                location,
                ConversionIssues(),
            ) != (criterion.text, criterion.check):
                refuse(f"{location}: {name} has no instruction that says the same; it was edited")
    if profile.points is None:
        _require_one_point(name, criteria, issues)
    _note_metadata(name, profile.name, rubric.metadata, criteria, issues)


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _require_one_point(name: str, criteria: Sequence[Criterion], issues: ConversionIssues) -> None:
    for criterion in criteria:
        if criterion.points != 1:
            issues.refusals.append(
                f"criterion {criterion.id}: {name} knows no points; each counts 1, and it has "
                f"{criterion.points}"
            )


def _note_parts(
    name: str,
    rubric: Rubric,
    criteria: Sequence[Criterion],
    issues: ConversionIssues,
    *,
    ids: bool,
    categories: bool,
    tags: bool,
    checks: bool = False,
) -> None:
    """Note the parts of a rubric that a format has no place for."""
    lose = issues.losses.append
    for number, criterion in enumerate(criteria, 1):
        location = f"criterion {criterion.id}"
        if criterion.check is not None and not checks:
            lose(f"{location}: {name} knows no checks; its text alone would say what to look for")
        if criterion.may_not_apply:
            lose(f"{location}: {name} has no place for may_not_apply; it would always apply")
        if criterion.source is not None:
            lose(f"{location}: {name} has no place for its source")
        if not ids and criterion.id != f"c{number}":
            lose(f"{location}: {name} knows no ids; it would come back as c{number}")
        if not categories and criterion.category != "task_fulfilment":
            lose(f"{location}: {name} has no place for its category {criterion.category}")
    if rubric.view is not None:
        lose(f"{name} has no place for the view {rubric.view}")
    if rubric.tags and not tags:
        lose(f"{name} has no place for tags: {', '.join(rubric.tags)}")


def _note_ropd(rubric: Rubric, criteria: Sequence[Criterion], issues: ConversionIssues) -> None:
    low, high = ROPD_CRITERIA
    refuse = issues.refusals.append
    if not low <= len(criteria) <= high:
        refuse(f"ROPD takes {low} to {high} criteria; there are {len(criteria)}")
    for criterion in criteria:
        location = f"criterion {criterion.id}"
        if criterion.points < 1:
            refuse(f"{location}: ROPD knows no negative points ({criterion.points})")
        if criterion.points > ROPD_POINTS:
            refuse(f"{location}: ROPD knows at most {ROPD_POINTS} points ({criterion.points})")
        if not criterion.text.strip():
            refuse(f"{location}: ROPD takes no blank text")
    _note_parts("ROPD", rubric, criteria, issues, ids=True, categories=True, tags=False)


def _note_metadata(
    name: str,
    format: str,
    metadata: Mapping[str, Any],
    criteria: Sequence[Criterion],
    issues: ConversionIssues,
) -> None:
    others = sorted(
        {
            other
            for each in (metadata, *(criterion.metadata for criterion in criteria))
            for other, value in each.items()
            if other != format and not (isinstance(value, dict) and not value.keys() - {HOW})
        }
    )
    if others:
        issues.losses.append(f"{name} has no place for the metadata: {', '.join(others)}")


def _write_native(rubric: Rubric, criteria: Sequence[Criterion]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema_version": NATIVE,
        "prompt": write_messages(rubric.prompt),
        "criteria": [_without_empty_metadata(c.model_dump(mode="json")) for c in criteria],
        "tags": list(rubric.tags),
    }
    if rubric.view:
        content["view"] = rubric.view
    return content | ({"metadata": rubric.metadata} if rubric.metadata else {})


def _without_empty_metadata(criterion: dict[str, Any]) -> dict[str, Any]:
    if not criterion["metadata"]:
        del criterion["metadata"]
    return criterion


def _write_ropd(criteria: Sequence[Criterion]) -> dict[str, Any]:
    rows = []
    for c in criteria:
        own = c.metadata.get("ropd")
        kept = own if isinstance(own, dict) else {}
        rows.append(
            {
                "criterion_id": kept.get("criterion_id", c.id),
                "category": kept.get("category", c.category),
                "criterion": c.text,
                "points": c.points,
            }
        )
    return {
        "schema_version": ROPD,
        "rubrics": rows,
        "maximum_score": sum(c.points for c in criteria),
    }
