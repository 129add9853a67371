"""Import of rubrics; `markscheme.exchange` reads and writes the formats."""

from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from markscheme.schema.base import Prompt, Tags, Wire
from markscheme.schema.rubrics import Rubric
from markscheme.text import check_valid
from markscheme.vocabulary import ExchangeFormat

MAX_VALUES = 100_000
"""Values in one content: more than 64 criteria with their checks can need."""
MAX_DEPTH = 32
MAX_INTEGER = 2**53
"""Up to here an integer equals its float; no points come near it."""


def check_json(content: Any) -> Any:
    """Return the content if it is JSON that can be sent, stored and walked.

    Decoders let NaN, NUL characters and lone surrogates through. Raises `ValueError`.
    """
    # Walk without recursion: the depth is what the sender chose.
    waiting, seen = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            check_valid(value)
        elif isinstance(value, float):
            if not isfinite(value):
                raise ValueError("every number must be finite")
        elif isinstance(value, int):  # bool included
            if abs(value) > MAX_INTEGER:
                raise ValueError("a number is too large")
        elif isinstance(value, (dict, list)):
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            seen += len(value)
            if seen > MAX_VALUES:
                raise ValueError(f"it holds more than {MAX_VALUES} values")
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise ValueError("every name in it must be a string")
                    check_valid(key)
            waiting.extend(
                (inner, depth + 1)
                for inner in (value.values() if isinstance(value, dict) else value)
            )
        elif value is not None:
            raise ValueError(f"a {type(value).__name__} is not JSON")
    return content


class RubricImport(Wire):
    """`POST /v1/rubrics:import`: a rubric in one of the formats.

    `prompt` is for formats that hold none.
    """

    format: ExchangeFormat
    content: Annotated[dict[str, Any], AfterValidator(check_json)]
    prompt: Prompt | None = None
    tags: Tags = []
    allow_loss: bool = Field(
        default=False, description="Take what can be held and leave the rest, which is told"
    )


class RubricImported(Wire):
    """The rubric as stored, and what of the content was left out, one sentence each."""

    object: Literal["rubric.imported"] = "rubric.imported"
    rubric: Rubric
    losses: list[str]
