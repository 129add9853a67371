"""Reading a model judge's reply: strictly, against what was offered. A reply that deviates decides nothing."""

import json
from collections.abc import Sequence
from typing import Any

from markscheme.vocabulary import CATEGORIES, UnscoredReason
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import Decision

MIN_CRITERIA, MAX_CRITERIA = 4, 12
MIN_POINTS, MAX_POINTS = 1, 5
MAX_CRITERION_CHARACTERS = 1000
_NAMES_THE_MARKING = ("reference ", "student ", "<<", ">>", "the rubric", "the judge")


class ReplyError(ValueError):
    """The reply breaks the contract. The message can be shown to the judge when it is asked again."""

    def __init__(self, message: str, reason: UnscoredReason = UnscoredReason.PARSE_FAILURE) -> None:
        super().__init__(message)
        self.reason = reason


def read_object(text: str) -> dict[str, Any]:
    """The one JSON object in a reply: the whole of it, else inside a code fence or prose.

    Two objects are refused: which of them was meant is a guess, and one may be quoted from the material.
    """
    found: list[dict[str, Any]] = []
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    place = text.find("{")
    while place != -1:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ReplyError):
                raise
            end = place + 1
        else:
            found.append(value)
        place = text.find("{", end)
    if len(found) != 1:
        raise ReplyError("the reply must hold exactly one JSON object" if found else "the reply holds no JSON object")
    return found[0]


def read_verdicts(reply: Any, ids: Sequence[str], *, evidence: bool = False) -> dict[str, Decision]:
    """``[{"id", "met", …}]`` as decisions by id; exactly the ids offered, booleans only."""
    if not isinstance(reply, list):
        raise ReplyError("verdicts must be an array")
    decisions: dict[str, Decision] = {}
    for item in reply:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise ReplyError("each verdict must be an object with an id")
        if item["id"] not in ids:
            raise ReplyError(f"a verdict names a criterion that was not offered; offered: {', '.join(ids)}",
                             UnscoredReason.OFF_MENU)
        if item["id"] in decisions:
            raise ReplyError(f"{item['id']} is decided twice")
        if not isinstance(item.get("met"), bool):
            raise ReplyError(f"met must be true or false for {item['id']}")
        quoted = item.get("evidence") if evidence else None
        decisions[item["id"]] = Decision(item["met"], quoted if isinstance(quoted, str) and quoted else None)
    missing = [i for i in ids if i not in decisions]
    if missing:
        raise ReplyError(f"not decided: {', '.join(missing)}")
    return decisions


def read_pool(reply: Any, size: int, ids: Sequence[str], *, evidence: bool = False) -> list[dict[str, Decision]]:
    """Group mode: one entry an answer, numbered 1 … ``size``, each once."""
    if not isinstance(reply, list):
        raise ReplyError("answers must be an array")
    decided: dict[int, dict[str, Decision]] = {}
    for item in reply:
        number = item.get("answer") if isinstance(item, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= size or number in decided:
            raise ReplyError(f"answers must be numbered 1 to {size}, each once")
        decided[number] = read_verdicts(item.get("verdicts"), ids, evidence=evidence)
    if len(decided) != size:
        raise ReplyError(f"{size} answers were given, {len(decided)} were marked")
    return [decided[i] for i in range(1, size + 1)]


def read_criteria(reply: dict[str, Any]) -> tuple[Criterion, ...]:
    """The rubricator's criteria: 4 to 12, whole points 1 to 5; the ids are ours."""
    items = reply.get("criteria")
    if not isinstance(items, list) or not MIN_CRITERIA <= len(items) <= MAX_CRITERIA:
        raise ReplyError(f"criteria must be an array of {MIN_CRITERIA} to {MAX_CRITERIA}")
    return tuple(_criterion(f"c{i}", item) for i, item in enumerate(items, 1))


def _criterion(criterion_id: str, item: Any) -> Criterion:
    if not isinstance(item, dict):
        raise ReplyError("each criterion must be an object")
    text, points, category = item.get("criterion"), item.get("points"), item.get("category")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CRITERION_CHARACTERS or "\x00" in text:
        raise ReplyError(f"criterion must be text of 1 to {MAX_CRITERION_CHARACTERS} characters")
    if not isinstance(points, int) or isinstance(points, bool) or not MIN_POINTS <= points <= MAX_POINTS:
        raise ReplyError(f"points must be a whole number from {MIN_POINTS} to {MAX_POINTS}")
    if category not in CATEGORIES:
        raise ReplyError(f"category must be one of {', '.join(CATEGORIES)}")
    if any(name in text.lower() for name in _NAMES_THE_MARKING):
        raise ReplyError("a criterion must not name references, students, fences, the rubric or the judge")
    return Criterion(criterion_id, text.strip(), points, category)


def _refuse_constant(name: str) -> Any:
    raise ReplyError(f"{name} is not JSON")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ReplyError("a key stands twice in one object")
    return dict(pairs)
