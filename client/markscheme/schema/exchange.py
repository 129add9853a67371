"""Rubrics in other formats, as they are sent in (``markscheme.exchange`` reads and writes the formats)."""

from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from markscheme.schema.base import Prompt, Tags, Wire
from markscheme.schema.rubrics import Rubric
from markscheme.vocabulary import ExchangeFormat

MOST_VALUES = 100_000
"""In one content: more than 64 criteria with their checks can come to."""
DEEPEST = 32
LARGEST_NUMBER = 2**53
"""Up to here a whole number is the same as a float; no points come near it."""


def plain_json(content: Any) -> Any:
    """The content, if it is JSON that can be sent, stored and walked. Raises ``ValueError``.

    What comes from a decoder may still hold NaN, NUL characters and lone surrogates.
    """
    waiting, seen = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, float):
            if not isfinite(value):
                raise ValueError("every number must be finite")
        elif isinstance(value, int):  # bool too
            if abs(value) > LARGEST_NUMBER:
                raise ValueError("a number is too large")
        elif isinstance(value, (dict, list)):
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            seen += len(value)
            if seen > MOST_VALUES:
                raise ValueError(f"it holds more than {MOST_VALUES} values")
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise ValueError("every name in it must be a string")
                    _check_text(key)
            waiting.extend(
                (inner, depth + 1)
                for inner in (value.values() if isinstance(value, dict) else value)
            )
        elif value is not None:
            raise ValueError(f"a {type(value).__name__} is not JSON")
    return content


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("must not contain lone surrogates") from None


class RubricImport(Wire):
    """``POST /v1/rubrics:import``: a rubric in one of the formats, for a prompt where the format holds none."""

    format: ExchangeFormat
    content: Annotated[dict[str, Any], AfterValidator(plain_json)]
    prompt: Prompt | None = None
    tags: Tags = []
    allow_loss: bool = Field(
        default=False, description="Take what can be held and leave the rest, which is told"
    )


class RubricImported(Wire):
    """The rubric as stored, and what it leaves of the content: a sentence each."""

    object: Literal["rubric.imported"] = "rubric.imported"
    rubric: Rubric
    losses: list[str]
