"""The core of both clients: what to send and how to read the answer. No I/O."""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any, Generic, Self, TypedDict, TypeVar

import httpx
from httpx_retries import Retry
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from markscheme.deadline import EXTENSION, Deadline
from markscheme.errors import AnswerUnreadable, ConnectionFailed, StatusError, error_class
from markscheme.exchange import LOSSES_HEADER, Exported, decode_losses
from markscheme.jsonl import WHITESPACE, LineError, split_lines, split_lines_async
from markscheme.schema import (
    Criterion,
    ErrorBody,
    Group,
    GroupScore,
    Message,
    Rollout,
    Rubric,
    RubricRef,
    Run,
    ScoreBatch,
    ScoreSummary,
    StudentResponse,
    TeacherEntry,
)
from markscheme.text import replace_invalid
from markscheme.vocabulary import Clamp, Thinking, VerifyMode, View

UNAUTHORIZED = 401
NDJSON = "application/x-ndjson"
IDEMPOTENCY_KEY = "Idempotency-Key"
TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
"""Seconds. `read` is between two chunks of an answer; a long batch sends heartbeats well within it.
"""
INDUCE_TIMEOUT = httpx.Timeout(connect=5.0, read=630.0, write=60.0, pool=60.0)
MAX_RETRIES = 2
"""Retries of a call by default."""
MAX_RETRY_WAIT_S = 65.0
"""Total wait between the attempts of a call: a per-minute limit has room again within 61 s."""

MessagesLike = Sequence[Message | Mapping[str, Any]]
PromptLike = str | MessagesLike
CriterionLike = Criterion | Mapping[str, Any]
RolloutLike = str | Rollout | Mapping[str, Any] | MessagesLike
GroupLike = Group | Mapping[str, Any]
StudentLike = str | StudentResponse | Mapping[str, Any] | MessagesLike
TeacherAnswerLike = str | MessagesLike
TeacherLike = TeacherEntry | Mapping[str, Any]
RubricLike = str | Rubric | RubricRef
"""A rubric, or its id."""
RunLike = str | Run | Mapping[str, Any]
"""A run and its step; a string is the id of a run at step 0."""


class ReplayChanges(TypedDict, total=False):
    """What a replay changes, and how the run was scored; see `schema.ReplayRequest`."""

    rubric_id: str | None
    judge: str | None
    view: View | None
    verify: VerifyMode | None
    thinking: Thinking
    clamp: Clamp


Param = str | float | Sequence[str]

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)
_NOT_MARKSCHEME = "is this a Markscheme service of this version?"
_KEY_HINT = "pass api_key to the client, or set MARKSCHEME_API_KEY"
_JITTER = SystemRandom()
_INCOMPLETE = "the answer broke off; send the batch again: what was judged is stored"


class HeaderRetry(Retry):
    """Retries that pass over every `Retry-After` header that names no time."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Return the seconds of the header. Raises `ValueError`, which makes the pause our own."""
        try:
            return super().parse_retry_after(retry_after)
        except OverflowError as error:  # a year or a zone that is no date's
            raise ValueError("not a date") from error


class DeadlineRetry(HeaderRetry):
    """Retries that never wait past the call's deadline: failing at once is better."""

    deadline: Deadline | None = None

    def increment(self) -> Self:
        """Return the policy for the next attempt, with the same deadline."""
        following = super().increment()
        assert isinstance(following, type(self))
        following.deadline = self.deadline
        return following

    def parse_retry_after(self, retry_after: str) -> float:
        """Return the seconds of a `Retry-After` header. Raises `DeadlineExceeded`, `ValueError`."""
        return self._check_wait(
            super().parse_retry_after(retry_after), "the service could not answer"
        )

    def backoff_strategy(self) -> float:
        """Return the seconds before the next attempt. Raises `DeadlineExceeded`."""
        # Not from Python's shared generator: a program that has seeded it must not see retries.
        pause_s = super().backoff_strategy() * _JITTER.random()
        return self._check_wait(pause_s, "the service did not answer")

    def _check_wait(self, pause_s: float, why: str) -> float:
        if (
            self.deadline is not None
            and min(pause_s, self.max_backoff_wait) >= self.deadline.remaining_s
        ):
            raise self.deadline.exceeded(why)
        return pause_s


def retry_policy(
    *,
    idempotent: bool = False,
    deadline: Deadline | None = None,
    max_retries: int = MAX_RETRIES,
) -> Retry:
    """Return the policy of one call: a few retries for errors that may pass.

    These are failed connections, 429 and gateway errors; `Retry-After` is obeyed up to the wait of
    a team that used up its requests per minute. A judge reply that could not be read, also a 502,
    does not get here: see `markscheme.transport`.

    Every call of the API can be repeated: scoring is answered from stored verdicts, changes set
    what they name, an import finds what it stored, and other calls that create something carry an
    idempotency key.

    Args:
        idempotent: Whether the call carries that key; then a 409 means that a lost attempt is
            still running, and is retried.
        deadline: The call's deadline.
        max_retries: Attempts after the first. With more than two the total wait grows as well.
    """
    retry = DeadlineRetry(
        total=max_retries,
        backoff_factor=0.5,
        backoff_jitter=0,
        max_backoff_wait=MAX_RETRY_WAIT_S,
        status_forcelist=[429, 502, 503, 504, *([409] if idempotent else [])],
        allowed_methods=["GET", "PATCH", "POST", "PUT"],
        total_timeout=MAX_RETRY_WAIT_S * max(1, max_retries / MAX_RETRIES),
    )
    retry.deadline = deadline
    return retry


def headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of every request."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def to_wire(value: Any) -> Any:
    """Return the value as plain data, with NUL and lone surrogates in its strings replaced.

    Model output may hold both. Models, mappings, sequences, iterators, and what has `tolist`
    (NumPy's, pandas' and PyTorch's values) become dictionaries, lists and scalars.
    """
    if isinstance(value, str):
        return replace_invalid(value)
    if isinstance(value, BaseModel):
        return to_wire(value.model_dump(exclude_none=True))
    if isinstance(value, Mapping):
        return {k: to_wire(v) for k, v in value.items()}
    # A sequence too, but not one to take apart.
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, Sequence | Iterator):
        return [to_wire(v) for v in value]
    if callable(tolist := getattr(value, "tolist", None)):
        return to_wire(tolist())
    return value


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, ready for either transport.

    Attributes:
        read: Turns the response into the answer; raises the service's error.
        timeout: Time limits where the client has none of its own.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], Answer]
    json: Any = None
    params: Mapping[str, Param] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: httpx.Timeout = field(default_factory=lambda: TIMEOUT)
    deadline: Deadline | None = None

    def extensions(self, max_retries: int) -> dict[str, Any]:
        """Return the httpx extensions of this call: its retry policy and its deadline."""
        return {
            "retry": retry_policy(
                idempotent=IDEMPOTENCY_KEY in self.headers,
                deadline=self.deadline,
                max_retries=max_retries,
            ),
            EXTENSION: self.deadline,
        }


def read(response: httpx.Response, model: type[Model]) -> Model:
    """Return a successful answer as `model`.

    Raises the service's error, or `AnswerUnreadable` for a body that is not the service's.
    """
    raise_for_status(response)
    try:
        return model.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise AnswerUnreadable(
            f"the answer is not a {model.__name__}: {_NOT_MARKSCHEME}"
        ) from error


def read_export(response: httpx.Response) -> Exported:
    """Return an export: JSON of a foreign format, not one of our models."""
    raise_for_status(response)
    try:
        content = from_json(response.content, allow_inf_nan=False)
    except ValueError as error:
        raise AnswerUnreadable(f"the answer is not JSON: {_NOT_MARKSCHEME}") from error
    return Exported(content, decode_losses(response.headers.get(LOSSES_HEADER, "")))


def read_text(response: httpx.Response) -> str:
    """Return an answer that is a text of its own, such as a report."""
    raise_for_status(response)
    # Not `response.text`: a proxy may name a charset that is none.
    return response.content.decode("utf-8", "replace")


def raise_for_status(response: httpx.Response) -> None:
    """Raise the service's error, if the answer is one; its body must have been read."""
    if not response.is_success:
        raise error_from_response(response)


def error_from_response(response: httpx.Response) -> StatusError:
    """Return the error that an answer states, or that its status stands for.

    The body must have been read.
    """
    status = response.status_code
    try:
        stated = ErrorBody.model_validate_json(response.content, extra="ignore")
    except ValidationError:
        reason = response.reason_phrase or "with an error"
        hint = f"; {_NOT_MARKSCHEME}" if status < 500 else ""  # above, it is a gateway's own
        return error_class(status)(f"the service answered {reason}{hint}", status=status)
    code, message = stated.error.code, stated.error.message
    if status == UNAUTHORIZED:
        message += f"; {_KEY_HINT}"
    return error_class(status, code)(
        message, status=status, code=code, request_id=stated.request_id
    )


def connection_error(
    base_url: str, error: Exception, deadline: Deadline | None
) -> ConnectionFailed:
    """Return the error for a service that did not answer, or not in time."""
    if deadline is not None and deadline.remaining_s <= 0:
        return deadline.exceeded()
    return ConnectionFailed(
        f"no answer from the Markscheme service at {base_url} ({type(error).__name__}); "
        "start it with 'markscheme serve' or check the URL"
    )


def response_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a streamed answer. Raises `ConnectionFailed` for what is not text."""
    try:
        yield from split_lines(pieces)
    except LineError as error:
        raise _line_error(error) from error


async def response_lines_async(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Like `response_lines`, for asyncio."""
    try:
        async for line in split_lines_async(pieces):
            yield line
    except LineError as error:
        raise _line_error(error) from error


def _line_error(error: LineError) -> ConnectionFailed:
    if not error.complete:
        return ConnectionFailed(_INCOMPLETE)
    return AnswerUnreadable(f"the answer, {error}: {_NOT_MARKSCHEME}")


class BatchReader:
    """Assembles a streamed score answer line by line."""

    def __init__(self, order: Iterable[str], deadline: Deadline | None = None) -> None:
        self._order, self._deadline = list(order), deadline
        self._groups: dict[str, GroupScore] = {}
        self._summary: ScoreSummary | None = None
        self._lines = 0

    def line(self, text: str) -> GroupScore | None:
        """Take one line; return its group, or `None` for a heartbeat or the summary.

        Raises `DeadlineExceeded` for a group that comes too late, and `ConnectionFailed` for a line
        that was cut off or is not the service's.
        """
        self._lines += 1
        # The service writes "object" first: the kind of a line is known before it is parsed.
        if '"object":"score.summary"' in text[:40]:
            self._summary = self._read(text, ScoreSummary)
            return None
        if self._deadline is not None:
            self._deadline.check()
        if not text.strip(WHITESPACE) or '"object":"heartbeat"' in text[:40]:
            return None
        group = self._read(text, GroupScore)
        self._groups[group.id] = group
        return group

    def _read(self, text: str, model: type[Model]) -> Model:
        try:
            return model.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            # A line that ends early was cut off in transit; other errors mean a foreign service.
            if first["type"] == "json_invalid" and "EOF" in first["msg"]:
                raise ConnectionFailed(_INCOMPLETE) from error
            raise AnswerUnreadable(
                f"the answer, line {self._lines}: not a {model.__name__}: {_NOT_MARKSCHEME}"
            ) from error

    def batch(self) -> ScoreBatch:
        """Return the whole answer. Raises `ConnectionFailed` if it is incomplete."""
        if self._summary is None or any(i not in self._groups for i in self._order):
            raise ConnectionFailed(_INCOMPLETE)
        return ScoreBatch(
            groups=[self._groups[i] for i in self._order],
            counts=self._summary.counts,
            usage=self._summary.usage,
        )
