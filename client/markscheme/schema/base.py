"""Building blocks of the wire contract: bounded texts, chat messages, errors, the base model."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic import Tag as Branch
from pydantic_core import InitErrorDetails

from markscheme.messages import (
    check_characters,
    normal_message,
    separate_results,
    unsupported_parts,
    visible_message,
)
from markscheme.text import check_valid, replace_invalid
from markscheme.vocabulary import Role

MAX_ROLLOUTS = 4096
"""Maximum rollouts in one `POST /v1/scores`."""
MAX_GROUP = 1024
"""Maximum rollouts of one group."""
MAX_WAIT_S = 300
"""Maximum seconds that a rollout waits for the others of its group in `POST /v1/rollouts`."""
MAX_CRITERIA, MAX_POINTS, MAX_TAGS, MAX_TEXT_LENGTH = 256, 100, 32, 4000
"""Limits of one rubric; the text is that of a criterion, in characters."""
MAX_TEACHER_ENTRIES = 1000
"""Maximum prompts in one `POST /v1/teacher-responses`."""
MAX_MESSAGES, MAX_TRAJECTORY = 256, 4096
"""Maximum messages of a prompt, and of one response."""


def _visible(value: Any) -> Any:
    return replace_invalid(value) if isinstance(value, str) else value


def _is_none(value: Any) -> bool:
    return value is None


Text = Annotated[str, AfterValidator(check_valid)]
"""Any text without NUL and lone surrogates."""
ModelText = Annotated[str, BeforeValidator(_visible)]
"""A model's output: NUL and lone surrogates in it are replaced by U+FFFD."""
ShortText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_TEXT_LENGTH), AfterValidator(check_valid)
]
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


def text_or_messages(value: Any) -> str | None:
    """Name the branch of a text or of a list of messages, for a discriminator."""
    return "<text>" if isinstance(value, str) else "<messages>" if isinstance(value, list) else None


def _text_or_parts(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Branch("<text>")] | Annotated[list[dict[str, Any]], Branch("<parts>")],
    Discriminator(
        _text_or_parts,
        custom_error_type="content_type",
        custom_error_message="must be a text, a list of parts, or null",
    ),
]


class ToolFunction(Wire):
    """The tool that is called, and its arguments: an object, or the model's own words."""

    name: Text
    arguments: Text | dict[str, Any]


class ToolCall(Wire):
    """One call of a tool by the assistant."""

    id: Text | None = Field(default=None, exclude_if=_is_none)
    type: Literal["function"] = "function"
    function: ToolFunction


class Message(Wire):
    """One chat message, as chat templates and APIs write it.

    `content` may be null or absent where the assistant calls tools. Text parts become one string;
    parts that are not text stay a list. Other fields than these are ignored: they say nothing that
    can be judged.
    """

    model_config = ConfigDict(extra="ignore")

    role: Role
    content: Content | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=_is_none)
    tool_call_id: Text | None = Field(default=None, exclude_if=_is_none)
    name: Text | None = Field(default=None, exclude_if=_is_none)
    reasoning_content: Text | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="before")
    @classmethod
    def _normal(cls, value: Any) -> Any:
        return normal_message(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _valid(self) -> "Message":
        if isinstance(self.content, list):
            check_characters(self.content)
        for call in self.tool_calls or ():
            check_characters(call.function.arguments)
        return self

    @property
    def text(self) -> str:
        """The text of the content; empty where there is none."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.get("text") or "" for part in self.content or ())

    @property
    def unsupported(self) -> list[str]:
        """The types of the parts that are not text."""
        return unsupported_parts({"content": self.content})


def _visible_message(value: Any) -> Any:
    return visible_message(value) if isinstance(value, Mapping) else value


def _said(message: Message) -> Message:
    """Return a prompt's message if it says something."""
    if message.content is None and not message.tool_calls:
        missing = InitErrorDetails(type="missing", loc=("content",), input=None)
        raise ValidationError.from_exception_data("Message", [missing])
    return message


Messages = Annotated[
    list[Annotated[Message, AfterValidator(_said)]],
    Field(min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(separate_results),
]
"""The messages of a prompt."""
Trajectory = Annotated[
    list[Annotated[Message, BeforeValidator(_visible_message)]],
    Field(max_length=MAX_TRAJECTORY),
    BeforeValidator(separate_results),
]
"""The messages of a response, after those of its prompt. NUL and lone surrogates in them are
replaced by U+FFFD."""
Prompt = Annotated[
    Annotated[Text, StringConstraints(min_length=1), Branch("<text>")]
    | Annotated[Messages, Branch("<messages>")],
    Discriminator(
        text_or_messages,
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
