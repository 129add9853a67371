"""Building blocks of the wire contract: bounded texts, chat messages, errors, the base model."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
)
from pydantic import Tag as Branch

from markscheme.text import check_valid, replace_invalid
from markscheme.vocabulary import Role

MAX_ROLLOUTS = 4096
"""Maximum rollouts in one `POST /v1/scores`."""
MAX_CRITERIA, MAX_POINTS, MAX_TAGS, MAX_TEXT_LENGTH = 256, 100, 32, 4000
"""Limits of one rubric; the text is that of a criterion, in characters."""
MAX_TEACHER_ENTRIES = 1000
"""Maximum prompts in one `POST /v1/teacher-responses`."""


def _visible(value: Any) -> Any:
    return replace_invalid(value) if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(check_valid)]
"""Any text without NUL and lone surrogates."""
ModelText = Annotated[str, BeforeValidator(_visible)]
"""A model's output: NUL and lone surrogates in it are replaced by U+FFFD."""
ShortText = Annotated[Text, StringConstraints(min_length=1, max_length=MAX_TEXT_LENGTH)]
ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=400, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Identifier = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
JudgeName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
TeamName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\w.:/-]+$")]
Tags = Annotated[list[Tag], Field(max_length=MAX_TAGS)]


class Wire(BaseModel):
    """Base of every model on the wire: strict, closed, finite, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Message(Wire):
    """One chat message of a prompt."""

    role: Role
    content: Text


Messages = Annotated[list[Message], Field(min_length=1, max_length=256)]
Prompt = Annotated[
    Annotated[Text, StringConstraints(min_length=1), Branch("<text>")]
    | Annotated[Messages, Branch("<messages>")],
    Discriminator(
        lambda value: {list: "<messages>", str: "<text>"}.get(type(value)),
        custom_error_type="prompt_type",
        custom_error_message="must be a text or a list of messages",
    ),
]
"""Chat messages, or a string that stands for one user message."""


class ErrorDetail(Wire):
    """What went wrong, in words that a caller can act on."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(Wire):
    """The one error shape of the service."""

    error: ErrorDetail
    request_id: str


class Usage(Wire):
    """What the request cost.

    `cached_tokens` are prompt tokens that the endpoint had cached. `cost_usd` is null when the cost
    of any call is not known: the judge has no prices, or did not state its tokens. `saved_usd` is
    what reused verdicts and rubrics had cost.
    """

    judge_calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_verdicts: int
    cached_tokens: int = 0
    cost_usd: float | None = None
    saved_usd: float = 0.0
