"""Turn the values of a row into prompts, points, texts and reference answers."""

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter, ValidationError

from markscheme.exchange.base import Malformed, excerpt
from markscheme.exchange.paths import MISSING, decode
from markscheme.messages import MessageError, plain_prompt, text_of
from markscheme.schema.base import MAX_POINTS, Message, Prompt

_PROMPT: TypeAdapter[str | list[Message]] = TypeAdapter(Prompt)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?")
LARGEST_WEIGHT, SMALLEST_WEIGHT, _NUMBER_CHARACTERS = 1e12, 1e-12, 40
WEIGHT_TOLERANCE = Fraction(1, 200)
"""By how much of itself a weight may change when it is rounded to whole points: 0.5 %."""
_FLOAT32 = 1e-7
"""Relative error of a weight that was stored in 32 bits."""
_ITEM = re.compile(
    r"^[ \t]*(?:[-*•][ \t]+)?(?:\*\*)?\(?\d{1,3}[.):](?:\*\*)?[ \t]+(?=\S)", re.MULTILINE
)
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+(?=\S)", re.MULTILINE)


def kind(value: Any) -> str:
    """Return what a JSON value is, as a noun."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")


def require(value: Any, location: str, expected: str) -> Malformed:
    """Return the error for a value of the wrong type."""
    if value is MISSING:
        return Malformed(f"{location}: is missing")
    return Malformed(f"{location}: must be {expected}, not {kind(value)}")


def to_text(value: Any, location: str) -> str:
    """Return a text that is not blank. Raises `Malformed`."""
    if not isinstance(value, str):
        raise require(value, location, "a text")
    if not value.strip():
        raise Malformed(f"{location}: must not be blank")
    return value


def to_messages(value: Any, location: str) -> tuple[Message, ...]:
    """Return the messages of a prompt. Raises `Malformed`.

    Args:
        value: A text, a list of messages, an object that holds `messages`, or such a list or
            object as JSON in a string.
        location: Its place, for errors.
    """
    decoded = decode(value)
    if isinstance(decoded, dict):
        if isinstance(decode(decoded.get("messages")), list):
            return to_messages(decoded["messages"], f"{location}.messages")
        decoded = [decoded] if "role" in decoded else decoded
    if decoded == []:
        raise Malformed(f"{location}: must hold at least one message")
    if (
        isinstance(decoded, list)
        and all(isinstance(each, Mapping) for each in decoded)
        and (decoded or not isinstance(value, str))
    ):
        return _checked(decoded, location)
    if isinstance(value, str):
        to_text(value, location)
        return _checked(value, location)
    raise require(value, location, "a text or a list of messages")


def _checked(prompt: str | list[Any], location: str) -> tuple[Message, ...]:
    try:
        found = _PROMPT.validate_python(plain_prompt(prompt, location))
    except MessageError as error:
        raise Malformed(str(error)) from None
    except ValidationError as error:
        each = error.errors(include_input=False, include_url=False)[0]
        parts = [part for part in each["loc"] if not str(part).startswith("<")]
        said = each["msg"].removeprefix("Value error, ")
        raise Malformed(f"{location}{_bracketed(parts)}: {said}") from None
    return (Message(role="user", content=found),) if isinstance(found, str) else tuple(found)


def _bracketed(parts: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def write_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as JSON, with the fields that they were given."""
    return [message.model_dump(mode="json", exclude_unset=True) for message in messages]


def numbered_columns(
    row: Mapping[str, Any], asked: str = "prompt_", answered: str = "response_"
) -> dict[str, Any]:
    """Return the columns of a conversation: `prompt_0`, `response_0`, `prompt_1` and so on.

    They end where a prompt is missing, null or blank. The response to the last prompt is not one of
    them: it is what is to be judged. Empty when there are none.

    Args:
        row: The row.
        asked: How the names of the user's columns begin.
        answered: The same of the assistant's.
    """
    start = next((n for n in (0, 1) if _filled(row.get(f"{asked}{n}"))), None)
    found: dict[str, Any] = {}
    number = start
    while number is not None and _filled(row.get(f"{asked}{number}")):
        before = f"{answered}{number - 1}"
        if number != start and _filled(row.get(before)):
            found[before] = row[before]
        found[f"{asked}{number}"] = row[f"{asked}{number}"]
        number += 1
    return found


def read_numbered(columns: Mapping[str, Any], asked: str = "prompt_") -> tuple[Message, ...]:
    """Return the conversation that numbered columns hold. Raises `Malformed`."""
    return tuple(
        Message(role="user" if name.startswith(asked) else "assistant", content=value)
        for name, value in columns.items()
    )


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def to_number(value: Any, location: str) -> Fraction:
    """Return a weight: a number, or a text that is one. Raises `Malformed`."""
    if (
        isinstance(value, str)
        and len(value) <= _NUMBER_CHARACTERS
        and _NUMBER.fullmatch(value.strip())
    ):
        value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, str):
            raise Malformed(f"{location}: must be a number, not {excerpt(value)}")
        raise require(value, location, "a number")
    if value and not SMALLEST_WEIGHT <= abs(value) <= LARGEST_WEIGHT:
        raise Malformed(f"{location}: {value:g} is no usable number of points")
    if isinstance(value, int):
        return Fraction(value)
    # The fraction that a binary number stands for, such as 1/10 for 0.1, even from 32 bits.
    simple = Fraction(value).limit_denominator(1000)
    return (
        simple
        if abs(float(simple) - value) <= _FLOAT32 * max(1.0, abs(value)) and (simple or not value)
        else Fraction(repr(value))
    )


def scaling(weights: Sequence[Fraction]) -> Fraction | None:
    """Return the number by which weights become whole points within the limits; often 1.

    Rounding to whole points may change a weight by `WEIGHT_TOLERANCE` if no number makes all of
    them whole. None where that is not enough: the weights' proportions are too fine.
    """
    return _exact_scaling(weights) or _rounded_scaling(weights)


def to_points(weights: Sequence[Fraction], factor: Fraction) -> list[int]:
    """Return weights as whole points."""
    return [round(weight * factor) for weight in weights]


def as_factor(value: float) -> Fraction:
    """Return the simple fraction that a factor, written as a number, stands for."""
    if value >= 1:
        return Fraction(value).limit_denominator(10**6)
    return 1 / Fraction(1 / value).limit_denominator(10**6)


def _rounded_scaling(weights: Sequence[Fraction]) -> Fraction | None:
    largest = max(map(abs, weights))
    # Try 1 point for the largest weight, then 2 and so on: the smallest points that fit.
    for points in range(1, MAX_POINTS + 1):
        factor = as_factor(float(points / largest))
        if all(
            0 < abs(whole) <= MAX_POINTS
            and abs(whole - weight * factor) <= WEIGHT_TOLERANCE * abs(weight * factor)
            for whole, weight in zip(to_points(weights, factor), weights, strict=True)
        ):
            return factor
    return None


def _exact_scaling(weights: Sequence[Fraction]) -> Fraction | None:
    if all(w.denominator == 1 and abs(w) <= MAX_POINTS for w in weights):
        return Fraction(1)
    factor = Fraction(math.lcm(*(w.denominator for w in weights)))
    if max(abs(w * factor) for w in weights) > MAX_POINTS:
        # Whole but too large: without their common divisor they may fit.
        factor /= math.gcd(*(int(w * factor) for w in weights))
    return factor if max(abs(w * factor) for w in weights) <= MAX_POINTS else None


def split_lines(text: str) -> list[str]:
    """Return the items of a numbered list, or of a bulleted one; a text without marks is one item.

    What stands before the first item is no item. Lines that have no mark belong to the item before,
    as does a numbered list within it.
    """
    starts = _outer(list(_ITEM.finditer(text))) or list(_BULLET.finditer(text))
    if starts:
        ends = [*(match.start() for match in starts[1:]), len(text)]
        return [text[match.end() : end].strip() for match, end in zip(starts, ends, strict=True)]
    return [text.strip()] if text.strip() else []


def _outer(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the marks that are indented no more than the first two of the list.

    The second one counts if its number follows the first's: a text that was stripped has lost the
    indentation of its first line.
    """
    first, second = marks[:1], marks[1:2]
    siblings = [*first, *(mark for mark in second if _number(mark) == _number(marks[0]) + 1)]
    most = max(map(_indent, siblings), default=0)
    return [mark for mark in marks if _indent(mark) <= most]


def _indent(mark: re.Match[str]) -> int:
    return len(mark[0]) - len(mark[0].lstrip())


def _number(mark: re.Match[str]) -> int:
    return int(re.sub(r"\D", "", mark[0]))


def to_references(value: Any) -> list[str]:
    """Return the texts of a reference answer, or of a list of them; other values give none."""
    if isinstance(value, list) and value and all(_is_message(each) for each in value):
        answers = [each for each in value if each["role"] == "assistant"]
        return to_references(answers[-1]) if answers else []
    if isinstance(value, list):
        return [text for each in value for text in to_references(each)]
    if _is_message(value):
        try:
            value = text_of(value.get("content"))
        except MessageError:
            return []
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return [value] if isinstance(value, str) and value.strip() else []


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str)
