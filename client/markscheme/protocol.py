"""The SDK's one core: what to send and how to read what comes back. No I/O; both clients stand on it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from httpx_retries import Retry
from pydantic import BaseModel, ValidationError

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
)

NDJSON = "application/x-ndjson"
TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
"""Read: between two pieces of an answer. A long batch sends heartbeats well within it."""
INDUCE_TIMEOUT = httpx.Timeout(connect=5.0, read=630.0, write=60.0, pool=60.0)

PromptLike = str | Sequence[Message | dict[str, str]]
CriterionLike = Criterion | dict[str, Any]
GroupLike = Group | dict[str, Any]
StudentLike = str | StudentResponse | dict[str, Any]

Model = TypeVar("Model", bound=BaseModel)
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


def retry_policy() -> Retry:
    """Two more tries for what may pass: no connection, 429 and 5xx gateways; ``Retry-After`` is obeyed.

    Every call of this API may be repeated: scoring is answered from what is stored, and a rubric with the same
    content is the same rubric.
    """
    return Retry(total=2, backoff_factor=0.5, max_backoff_wait=8.0, status_forcelist=[429, 502, 503, 504],
                 allowed_methods=["GET", "POST"], total_timeout=60.0)


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
    params: dict[str, str | int] | None = None


def read(response: httpx.Response, model: type[Model]) -> Model:
    """A successful answer as ``model``. Raises the stated error, or ``ConnectionFailed`` for a foreign body."""
    raise_for_status(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise ConnectionFailed(f"the answer is not a {model.__name__}: is this a Markscheme service of this version?"
                               ) from error


def raise_for_status(response: httpx.Response) -> None:
    """Raise the error that the service stated; the body must have been read."""
    if response.is_success:
        return
    try:
        stated = ErrorBody.model_validate_json(response.content)
    except ValidationError:
        raise error_class(response.status_code)(
            f"the service answered {response.reason_phrase or 'with an error'}", status=response.status_code) from None
    raise error_class(response.status_code)(stated.error.message, status=response.status_code, code=stated.error.code,
                                            request_id=stated.request_id)


def unreachable(base_url: str, error: Exception) -> ConnectionFailed:
    """The error for a service that did not answer, with what to do."""
    return ConnectionFailed(f"no answer from the Markscheme service at {base_url} ({type(error).__name__}); "
                            "start it with 'markscheme serve' or check the URL")


class BatchReader:
    """Puts a streamed score answer together, line by line."""

    def __init__(self, order: Iterable[str]) -> None:
        self._order = list(order)
        self._groups: dict[str, GroupScore] = {}
        self._summary: ScoreSummary | None = None

    def line(self, text: str) -> GroupScore | None:
        """Take one line; the group, when it is one."""
        if not text.strip() or '"object":"heartbeat"' in text[:40]:
            return None
        if '"object":"score.summary"' in text[:40]:
            self._summary = ScoreSummary.model_validate_json(text)
            return None
        group = GroupScore.model_validate_json(text)
        self._groups[group.id] = group
        return group

    def batch(self) -> ScoreBatch:
        """The whole answer. Raises :class:`ConnectionFailed` when it broke off."""
        if self._summary is None or any(i not in self._groups for i in self._order):
            raise ConnectionFailed("the answer broke off; send the batch again: what was judged is stored")
        return ScoreBatch(groups=[self._groups[i] for i in self._order], counts=self._summary.counts,
                          usage=self._summary.usage)
