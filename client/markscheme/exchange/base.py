"""What the formats share: results, errors, and the collection of losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, unquote

from markscheme.schema.base import Message
from markscheme.schema.rubrics import Criterion
from markscheme.vocabulary import EXCHANGE_FORMATS

LOSSES_HEADER = "X-Markscheme-Losses"
"""Response header of an export that lists its losses, as `encode_losses` writes them."""
NATIVE, ROPD = "markscheme.rubric.v1", "ropd.rubric.v1"
_SHOWN = 20


class Malformed(ValueError):
    """The content is not of the format, or the prompt is missing or given twice.

    Attributes:
        param: Which of the two is at fault.
    """

    def __init__(self, message: str, param: Literal["content", "prompt"] = "content") -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class NotRepresentable(ValueError):
    """The other side cannot hold all of the rubric.

    Attributes:
        losses: One sentence each, with the place.
        allowable: Whether `allow_loss` would help.
    """

    def __init__(self, losses: list[str], allowable: bool = False) -> None:
        super().__init__(losses, allowable)
        self.losses = losses
        self.allowable = allowable

    def __str__(self) -> str:
        return _join_limited(self.losses) + (
            "; allow_loss goes on without it" if self.allowable else ""
        )


@dataclass(frozen=True, slots=True)
class Exported:
    """A rubric in a format, and what that format could not hold."""

    content: dict[str, Any] | list[Any]
    losses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """A response that a row gives as good, and whose it is: a model, a person, the data set."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A rubric read from a format.

    Attributes:
        prompt, criteria, tags: What it says. The criteria have ids.
        losses: What could not be held, one sentence each.
        notes: What was read in a way that may surprise, one sentence each.
        metadata: What else the content held, by the name of the format; `dump` writes it again.
        provenance: The format, and the factor of the points where they were scaled.
        references: Reference answers of the row, which are in `metadata` too.
    """

    prompt: tuple[Message, ...]
    criteria: tuple[Criterion, ...]
    tags: tuple[str, ...]
    losses: tuple[str, ...]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[ReferenceAnswer, ...] = ()


@dataclass(slots=True)
class ConversionIssues:
    """What cannot be carried over: `losses` may be allowed, `refusals` may not.

    `notes` say what is carried over in a way that may surprise.
    """

    losses: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def accept_losses(self, allow_loss: bool) -> tuple[str, ...]:
        """Return the losses if they are allowed. Raises `NotRepresentable`."""
        if self.refusals or (self.losses and not allow_loss):
            raise NotRepresentable(
                self.refusals + ([] if allow_loss else self.losses), not self.refusals
            )
        return tuple(self.losses)


def encode_losses(losses: Sequence[str], most_bytes: int = 2000) -> str:
    """Join losses to one ASCII line for a header; those beyond `most_bytes` are only counted."""
    line = ""
    for number, loss in enumerate(losses):
        longer = (f"{line}; " if line else "") + quote(loss, safe=" ,.:()'/-")
        if len(longer) > most_bytes:
            return f"{line}; and {len(losses) - number} more" if line else f"{len(losses)} losses"
        line = longer
    return line


def decode_losses(line: str) -> tuple[str, ...]:
    """Return the sentences that `encode_losses` joined."""
    return tuple(unquote(loss) for loss in line.split("; ")) if line else ()


def check_format(format: str) -> str:
    """Return the name if there is such a format. Raises `Malformed`."""
    if format not in EXCHANGE_FORMATS:
        raise Malformed(f"there is no such format; there are {', '.join(EXCHANGE_FORMATS)}")
    return format


def assign_ids(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """Return the criteria with ids: those without one are numbered in order."""
    return tuple(
        c if c.id is not None else c.model_copy(update={"id": f"c{number}"})
        for number, c in enumerate(criteria, 1)
    )


def excerpt(text: str) -> str:
    """Return the beginning of a text, quoted, on one line, with only printable characters."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def join_excerpts(texts: Sequence[str]) -> str:
    """Join texts to a list for a sentence."""
    return _join_limited([excerpt(text) for text in texts], ", ")


def _join_limited(parts: Sequence[str], between: str = "; ") -> str:
    more = len(parts) - _SHOWN
    return between.join(parts[:_SHOWN]) + (f"{between}and {more} more" if more > 0 else "")
