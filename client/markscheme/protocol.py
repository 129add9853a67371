"""The SDK's one core: what to send and how to read what comes back. No I/O; both clients stand on it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
from httpx_retries import Retry
from pydantic import BaseModel, ValidationError

from markscheme.deadline import EXTENSION, Deadline
from markscheme.errors import ConnectionFailed, error_class
from markscheme.schema import (
    Criterion,
    ErrorBody,
    Group,
    GroupScore,
    Message,
    ScoreBatch,
    ScoreSummary,
    StudentResponse,
    TeacherEntry,
)

NDJSON = "application/x-ndjson"
IDEMPOTENCY_KEY = "Idempotency-Key"
TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
"""Read: between two pieces of an answer. A long batch sends heartbeats well within it."""
INDUCE_TIMEOUT = httpx.Timeout(connect=5.0, read=630.0, write=60.0, pool=60.0)

PromptLike = str | Sequence[Message | dict[str, str]]
CriterionLike = Criterion | dict[str, Any]
GroupLike = Group | dict[str, Any]
StudentLike = str | StudentResponse | dict[str, Any]
TeacherLike = TeacherEntry | dict[str, Any]
Param = str | float | Sequence[str]

Model = TypeVar("Model", bound=BaseModel)
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


class BoundedRetry(Retry):
    """Retries that never wait past the call's deadline: better to hear at once that there is no time left."""

    deadline: Deadline | None = None

    def increment(self) -> Self:
        following = super().increment()
        assert isinstance(following, type(self))
        following.deadline = self.deadline
        return following

    def parse_retry_after(self, retry_after: str) -> float:
        return self._in_time(super().parse_retry_after(retry_after), "the service was busy and could not answer")

    def backoff_strategy(self) -> float:
        return self._in_time(super().backoff_strategy(), "the service did not answer")

    def _in_time(self, pause_s: float, why: str) -> float:
        if self.deadline is not None and min(pause_s, self.max_backoff_wait) >= self.deadline.left_s:
            raise self.deadline.exceeded(why)
        return pause_s


def retry_policy(*, keyed: bool = False, deadline: Deadline | None = None) -> Retry:
    """Two more tries for what may pass: no connection, 429 and 5xx gateways; ``Retry-After`` is obeyed.

    Every call of this API may be repeated: scoring is answered from what is stored, and what creates something is
    ``keyed``. Such a call is answered 409 while an attempt that we lost sight of is still at work.
    """
    retry = BoundedRetry(total=2, backoff_factor=0.5, max_backoff_wait=8.0,
                         status_forcelist=[429, 502, 503, 504, *([409] if keyed else [])],
                         allowed_methods=["GET", "POST"], total_timeout=60.0)
    retry.deadline = deadline
    return retry


def headers(api_key: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def sendable(value: Any) -> Any:
    """The value with NUL and lone surrogates in its texts made visible as U+FFFD: model output may hold them."""
    if isinstance(value, str):
        return _UNSENDABLE.sub("\ufffd", value)
    if isinstance(value, BaseModel):
        return sendable(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return {k: sendable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [sendable(v) for v in value]
    return value


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready for either transport."""

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Param] | None = None
    headers: dict[str, str] | None = None

    def extensions(self, deadline: Deadline | None) -> dict[str, Any]:
        """What the transports are to know of this call."""
        keyed = self.headers is not None and IDEMPOTENCY_KEY in self.headers
        return {"retry": retry_policy(keyed=keyed, deadline=deadline), EXTENSION: deadline}


def read(response: httpx.Response, model: type[Model]) -> Model:
    """A successful answer as ``model``. Raises the stated error, or ``ConnectionFailed`` for a foreign body."""
    raise_for_status(response)
    try:
        return model.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise ConnectionFailed(f"the answer is not a {model.__name__}: is this a Markscheme service of this version?"
                               ) from error


def raise_for_status(response: httpx.Response) -> None:
    """Raise the error that the service stated; the body must have been read."""
    if response.is_success:
        return
    try:
        stated = ErrorBody.model_validate_json(response.content, extra="ignore")
    except ValidationError:
        raise error_class(response.status_code)(
            f"the service answered {response.reason_phrase or 'with an error'}", status=response.status_code) from None
    raise error_class(response.status_code)(stated.error.message, status=response.status_code, code=stated.error.code,
                                            request_id=stated.request_id)


def unanswered(base_url: str, error: Exception, deadline: Deadline | None) -> ConnectionFailed:
    """The error for a service that did not answer, or not in time, with what to do."""
    if deadline is not None and deadline.left_s <= 0:
        return deadline.exceeded()
    return ConnectionFailed(f"no answer from the Markscheme service at {base_url} ({type(error).__name__}); "
                            "start it with 'markscheme serve' or check the URL")


class BatchReader:
    """Puts a streamed score answer together, line by line."""

    def __init__(self, order: Iterable[str], deadline: Deadline | None = None) -> None:
        self._order, self._deadline = list(order), deadline
        self._groups: dict[str, GroupScore] = {}
        self._summary: ScoreSummary | None = None

    def line(self, text: str) -> GroupScore | None:
        """Take one line; the group, when it is one. Raises :class:`DeadlineExceeded` when it comes too late."""
        if '"object":"score.summary"' in text[:40]:
            self._summary = ScoreSummary.model_validate_json(text, extra="ignore")
            return None
        if self._deadline is not None:
            self._deadline.check()
        if not text.strip() or '"object":"heartbeat"' in text[:40]:
            return None
        group = GroupScore.model_validate_json(text, extra="ignore")
        self._groups[group.id] = group
        return group

    def batch(self) -> ScoreBatch:
        """The whole answer. Raises :class:`ConnectionFailed` when it broke off."""
        if self._summary is None or any(i not in self._groups for i in self._order):
            raise ConnectionFailed("the answer broke off; send the batch again: what was judged is stored")
        return ScoreBatch(groups=[self._groups[i] for i in self._order], counts=self._summary.counts,
                          usage=self._summary.usage)
