"""The row formats of data sets, described: where each has its prompt, its criteria and the rest."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markscheme.checks import Check
from markscheme.exchange.base import ConversionIssues, Malformed, excerpt, join_excerpts
from markscheme.exchange.instructions import instruction_criterion, read_instructions
from markscheme.exchange.paths import (
    MISSING,
    Path,
    decode,
    first,
    parse_path,
    parse_paths,
    take,
    write_path,
)
from markscheme.exchange.promptfoo import RUBRIC, read_assertions
from markscheme.exchange.values import require, split_lines, to_text
from markscheme.vocabulary import MapField

_IMPORTANCE = re.compile(
    r"\(importance:\s*(\d{1,3}(?:\.\d+)?)(?:\s*/\s*100)?\s*\)\s*\.?$", re.IGNORECASE
)
_KIND = re.compile(r"\[(hard rule|principle)\]\s*\.?$", re.IGNORECASE)
FULL_IMPORTANCE = 100
"""WildChecklists: the importance of a requirement that states none beside others that do."""


@dataclass(frozen=True, slots=True)
class Item:
    """A criterion as a row holds it.

    Attributes:
        raw: The value in the row's list.
        location: Its place, for errors.
        text, points: What it says and weighs, not yet checked; `MISSING` where it says nothing.
        rest: What else it holds, for the metadata.
        check: How code decides it, if it can.
        text_at, points_at: The places of its text and points.
    """

    raw: Any
    location: str
    text: Any
    points: Any
    rest: dict[str, Any]
    check: Check | None = None
    text_at: str = ""
    points_at: str = ""


@dataclass(frozen=True, slots=True)
class ItemList:
    """The criteria of a row, and what in the list is none, with its position there."""

    items: tuple[Item, ...]
    passed_over: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a row has reference answers, and whose they are if the row itself does not say."""

    path: Path
    source: str
    named_at: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """How criteria stand in a row: read, and written again; `joined` in one text."""

    read: Callable[["Profile", Any, str, ConversionIssues], ItemList]
    write: Callable[["Profile", list[Any]], Any]
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A format of rows.

    Attributes:
        name: The name of the format.
        title: What it is called in sentences.
        prompt, criteria: Paths of which the first that leads to something is read.
        text, points: The same, within a criterion.
        default_points: Of a criterion that states none; without it, points are required.
        references: Where reference answers are.
        id: Where the row's own name is, for messages.
        label: The name of a criterion within it; an id of ours is written there.
        tags: Where the rubric's tags are.
        category_tag: Whether a criterion's `tags` may hold `category:…`.
        question: Whether a prompt of one user message is written as a text.
        lone_question: Whether the prompt can be nothing else.
        whole_floats: Whether whole points are written as floats.
        min_points: The lowest points that can be written.
        derived: Fields that repeat the criteria in another form, and how they follow from them.
        columns: Columns that hold the criteria together, instead of `criteria`; alternatives.
        fresh: Fields of a criterion that did not come from this format.
        layout: How the criteria stand in the row.
        check: Refuses criteria that break a rule of the format.
        variables: Whether texts are templates, filled in from the row's `vars`.
    """

    name: str
    title: str
    prompt: tuple[Path, ...]
    criteria: tuple[Path, ...]
    text: tuple[Path, ...] = ((),)
    points: tuple[Path, ...] | None = None
    default_points: int | None = None
    references: tuple[Reference, ...] = ()
    id: tuple[Path, ...] = ()
    label: str | None = None
    tags: Path | None = None
    category_tag: bool = False
    question: bool = True
    lone_question: bool = False
    whole_floats: bool = False
    min_points: int | None = None
    derived: Mapping[str, Callable[[list[Any]], Any]] = field(default_factory=dict)
    columns: tuple[tuple[str, ...], ...] = ()
    fresh: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=lambda: _LIST)
    check: Callable[[Sequence[Item], ConversionIssues], None] | None = None
    variables: bool = False


def _read_list(profile: Profile, value: Any, location: str, _: ConversionIssues) -> ItemList:
    """Read a list of objects or texts, a table of columns, or a text of numbered lines."""
    rows = decode(value)
    if isinstance(rows, dict) and rows and all(isinstance(each, list) for each in rows.values()):
        # A list of objects column by column, as tables write it.
        lengths = {len(column) for column in rows.values()}
        if len(lengths) == 1:
            names = list(rows)
            rows = [
                dict(zip(names, each, strict=True)) for each in zip(*rows.values(), strict=True)
            ]
    if isinstance(rows, str):
        rows = split_lines(rows)
    if not isinstance(rows, list):
        raise require(value, location, "a list")
    return ItemList(
        tuple(_read_item(profile, row, f"{location}[{number}]") for number, row in enumerate(rows))
    )


def _read_item(profile: Profile, row: Any, location: str) -> Item:
    if isinstance(row, str) and not isinstance(decode(row), dict):
        return Item(row, location, row, MISSING, {}, text_at=location, points_at=location)
    row = decode(row)
    if not isinstance(row, dict):
        raise require(row, location, "an object or a text")
    text_path, text = first(row, profile.text)
    points_path, points = (
        first(row, profile.points) if profile.points is not None else ((), MISSING)
    )
    rest = _copy(row)
    take(rest, text_path)
    if points is not MISSING:
        take(rest, points_path)
    return Item(
        row,
        location,
        text,
        points,
        rest,
        text_at=_below(location, text_path),
        points_at=_below(location, points_path),
    )


def _below(location: str, path: Path) -> str:
    inner = write_path(path)
    return f"{location}.{inner}" if inner and not inner.startswith("[") else location + inner


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _write_list(_: Profile, items: list[Any]) -> Any:
    return items


_LIST: Layout = Layout(_read_list, _write_list)


def _lines(value: Any) -> list[str] | None:
    """Return the lines of a list in one text, or of a list of texts; None for anything else."""
    rows = decode(value)
    if isinstance(rows, str):
        return split_lines(rows)
    return rows if isinstance(rows, list) and all(isinstance(r, str) for r in rows) else None


def _read_requirements(
    profile: Profile, value: Any, location: str, issues: ConversionIssues
) -> ItemList:
    """Read WildChecklists' numbered lines, which end with their importance."""
    lines = _lines(value)
    if lines is None:
        return _read_list(profile, value, location, issues)
    found = [_IMPORTANCE.search(line) for line in lines]
    weighted = any(found)
    items, headings = [], []
    for number, (line, match) in enumerate(zip(lines, found, strict=True)):
        here = f"{location}[{number}]"
        if match is None and weighted and line.endswith(":"):
            issues.notes.append(
                f"{here}: {excerpt(line)} is a heading; it is kept in the metadata and not judged"
            )
            headings.append((number, line))
            continue
        text = line[: match.start()].rstrip() if match else line
        importance = match[1] if match else FULL_IMPORTANCE if weighted else 1
        items.append(Item(line, here, text, importance, {}, text_at=here, points_at=here))
    return ItemList(tuple(items), tuple(headings))


def _write_requirements(_: Profile, items: list[Any]) -> Any:
    return "\n".join(
        f"{number}) {item}"
        if isinstance(item, str)
        else f"{number}) {item['text']} (importance: {item['importance']}/100)"
        for number, item in enumerate(items, 1)
    )


def _read_kinds(profile: Profile, value: Any, location: str, issues: ConversionIssues) -> ItemList:
    """Read OpenRubrics' numbered lines, which end with `[Hard Rule]` or `[Principle]`."""
    lines = _lines(value)
    if lines is None:
        return _read_list(profile, value, location, issues)
    items = []
    for number, line in enumerate(lines):
        match = _KIND.search(line)
        here = f"{location}[{number}]"
        items.append(
            Item(
                line,
                here,
                line[: match.start()].rstrip() if match else line,
                MISSING,
                {"kind": match[1]} if match else {},
                text_at=here,
                points_at=here,
            )
        )
    return ItemList(tuple(items))


def _write_kinds(_: Profile, items: list[Any]) -> Any:
    return "\n".join(
        f"{number}. {item['text']}" + (f" [{item['kind']}]" if item.get("kind") else "")
        for number, item in enumerate(items, 1)
    )


def _read_instruction_list(
    _: Profile, value: Any, location: str, issues: ConversionIssues
) -> ItemList:
    """Read verifiable instructions, each of which becomes a criterion with a check if it can."""
    items = []
    for number, raw in enumerate(read_instructions(value)):
        here = f"{location}[{number}]"
        text, check = instruction_criterion(raw, here, issues)
        items.append(Item(raw, here, text, MISSING, raw, check=check, text_at=here))
    return ItemList(tuple(items))


def _write_instruction_list(_: Profile, items: list[Any]) -> Any:
    return {
        "instruction_id_list": [item["instruction_id"] for item in items],
        "kwargs": [item["kwargs"] for item in items],
    }


def _read_assertion_list(
    profile: Profile, value: Any, location: str, issues: ConversionIssues
) -> ItemList:
    decoded = decode(value)
    rows = [decoded] if isinstance(decoded, dict) else decoded
    if not isinstance(rows, list):
        raise require(value, location, "a list")
    chosen, others = read_assertions(rows, location, issues)
    return ItemList(
        tuple(_read_item(profile, rows[n], f"{location}[{n}]") for n in chosen),
        tuple((n, rows[n]) for n in others),
    )


def _check_verifiers(items: Sequence[Item], issues: ConversionIssues) -> None:
    names = []
    for item in items:
        rest = item.rest
        names.append(to_text(rest.get("name", MISSING), f"{item.location}.name"))
        choices = rest.get("choices", ["no", "yes"])
        here = f"{item.location}.choices"
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise require(choices, here, "a list of texts")
        if [choice.strip().lower() for choice in choices] != ["no", "yes"]:
            issues.refusals.append(
                f"{here}: are {join_excerpts(choices)}; a criterion here is met or not: rephrase "
                "it as a question with the choices no and yes, in this order"
            )
    for name in names:
        if names.count(name) > 1:
            raise Malformed(f"names of criteria must be unique; {excerpt(name)} is there twice")


def _text_of(path: str) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [item.get(path) if isinstance(item, dict) else item for item in items]


def _paths(text: str) -> tuple[Path, ...]:
    return parse_paths(text)


_TEACHER = _paths("teacher_model|teacher")
_COMPLETIONS = parse_path("ideal_completions_data.ideal_completions_ref_completions")
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "healthbench",
            "HealthBench",
            prompt=_paths("prompt"),
            criteria=_paths("rubrics"),
            text=_paths("criterion"),
            points=_paths("points"),
            references=(
                Reference(parse_path("ideal_completions_data.ideal_completion"), "human"),
                Reference(_COMPLETIONS, "healthbench reference"),
            ),
            id=_paths("prompt_id"),
            tags=parse_path("example_tags"),
            category_tag=True,
            question=False,
        ),
        Profile(
            "healthbench-professional",
            "HealthBench Professional",
            prompt=_paths("conversation.messages|conversation"),
            criteria=_paths("rubric_items"),
            text=_paths("criterion_text"),
            points=_paths("points"),
            references=(Reference(parse_path("physician_response"), "human"),),
            id=_paths("id"),
            question=False,
        ),
        Profile(
            "rar",
            "Rubrics as Rewards",
            prompt=_paths("question"),
            criteria=_paths("rubric"),
            text=_paths("description"),
            points=_paths("weight"),
            references=(Reference(parse_path("reference_answer"), "rar reference"),),
            label="title",
            lone_question=True,
            derived={"rubric_count": len, "rubric_list": _text_of("description")},
        ),
        Profile(
            "rubrichub",
            "RubricHub",
            prompt=_paths("prompt|query|question"),
            criteria=_paths("reward_model.rubrics|Rubrics|rubrics"),
            text=_paths("criterion"),
            points=_paths("points"),
            references=(Reference(parse_path("answer"), "rubrichub answer"),),
            id=_paths("sample_id|id"),
            question=False,
            derived={"Rubrics": list},
        ),
        Profile(
            "researchrubrics",
            "ResearchRubrics",
            prompt=_paths("prompt"),
            criteria=_paths("rubrics"),
            text=_paths("criterion"),
            points=_paths("weight"),
            references=(Reference(parse_path("reference_answer"), "researchrubrics reference"),),
            id=_paths("sample_id"),
            whole_floats=True,
        ),
        Profile(
            "wildchecklists",
            "WildChecklists",
            prompt=_paths("prompt"),
            criteria=_paths("requirements"),
            text=_paths("text"),
            points=_paths("importance"),
            default_points=1,
            min_points=1,
            layout=Layout(_read_requirements, _write_requirements, joined=True),
        ),
        Profile(
            "openrubrics",
            "OpenRubrics",
            prompt=_paths("instruction"),
            criteria=_paths("rubric"),
            text=_paths("text"),
            default_points=1,
            layout=Layout(_read_kinds, _write_kinds, joined=True),
        ),
        Profile(
            "ifeval",
            "IFEval",
            prompt=_paths("prompt|messages"),
            criteria=(),
            columns=(("instruction_id_list", "kwargs"), ("ground_truth",)),
            default_points=1,
            references=(
                Reference(parse_path("teacher_responses"), "ifeval reference", _TEACHER),
                Reference(parse_path("reference_answer"), "ifeval reference", _TEACHER),
            ),
            id=_paths("key|id"),
            layout=Layout(_read_instruction_list, _write_instruction_list),
        ),
        Profile(
            "promptfoo",
            "promptfoo",
            prompt=_paths("prompt"),
            criteria=_paths("assert"),
            text=_paths("value"),
            points=_paths("weight"),
            default_points=1,
            min_points=1,
            id=_paths("description"),
            fresh={"type": RUBRIC},
            layout=Layout(_read_assertion_list, _write_list),
            variables=True,
        ),
        Profile(
            "verifiers",
            "verifiers",
            prompt=(),
            criteria=_paths("criteria"),
            text=_paths("text"),
            points=_paths("weight"),
            default_points=1,
            label="name",
            whole_floats=True,
            min_points=1,
            fresh={"choices": ["no", "yes"]},
            check=_check_verifiers,
        ),
    )
}


def mapped_profile(mapping: Mapping[MapField, str]) -> Profile:
    """Return the profile that a mapping describes. Raises `Malformed`.

    Args:
        mapping: Paths by the part of a rubric: `prompt` and `criteria`; `text` and `points` within
            a criterion; `reference`; `id`.
    """
    if missing := [name for name in ("prompt", "criteria") if name not in mapping]:
        raise Malformed(f"the mapping says nothing of {' and '.join(missing)}")
    paths = {}
    for name, text in mapping.items():
        try:
            paths[name] = parse_paths(text)
        except ValueError as error:
            raise Malformed(f"the mapping of {name}: {error}") from None
    return Profile(
        "mapped",
        "the mapping",
        prompt=paths["prompt"],
        criteria=paths["criteria"],
        text=paths.get("text", ((),)),
        points=paths.get("points"),
        default_points=None if "points" in paths else 1,
        references=tuple(
            Reference(path, "reference", _TEACHER) for path in paths.get("reference", ())
        ),
        id=paths.get("id", ()),
    )
