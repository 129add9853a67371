"""The errors that a client call can raise.

    MarkschemeError
    ├── InvalidArgument           an argument cannot be used; nothing was sent; also a ValueError
    ├── ClientClosed              the client was closed before the call; also a RuntimeError
    ├── ConnectionFailed          the service was not reached, or its answer broke off
    │   ├── AnswerUnreadable      the answer is not what a Markscheme service of this version sends
    │   └── DeadlineExceeded      no answer within the call's deadline_s; also a TimeoutError
    └── StatusError               the service answered with an error (status, code, request_id)
        ├── InvalidRequest        400, 413, 415, 422
        ├── InsufficientQuota     402: a hard budget is spent
        ├── AuthenticationFailed  401, 403
        ├── NotFound              404
        ├── Conflict              409; after retries, while the same call is still running
        ├── JudgeReplyUnreadable  502 with code judge_reply; not retried, since each try is paid for
        └── ServiceUnavailable    429 and other 5xx, after retries

A rollout that could not be scored raises none of these: it is an answer with `reward=None` and a
reason.
"""

from typing import Any

JUDGE_REPLY = "judge_reply"
"""Error code of a judge reply that could not be read. Its status, 502, is a broken proxy's too."""


class MarkschemeError(Exception):
    """Base class of all errors of the SDK."""


class InvalidArgument(MarkschemeError, ValueError):
    """An argument cannot be used; nothing was sent.

    Attributes:
        param: The argument and the place in it, such as `groups[0].rollouts`.
        message: What is wrong with it.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, as `StatusError` does."""
        return type(self), (self.param, self.message)


class ClientClosed(MarkschemeError, RuntimeError):
    """The client was closed before the call."""


class ConnectionFailed(MarkschemeError):
    """The service was not reached, or its answer broke off."""


class AnswerUnreadable(ConnectionFailed):
    """The answer is not what a Markscheme service of this version sends; a retry rarely helps."""


class DeadlineExceeded(ConnectionFailed, TimeoutError):
    """The deadline passed before an answer came, or would pass before the next attempt."""


class StatusError(MarkschemeError):
    """The service answered with an error.

    Attributes:
        message: The service's message.
        status: HTTP status.
        code: The service's error code, such as `rate_limited`, if it gave one.
        request_id: The id to quote when reporting the error, if there is one.
    """

    def __init__(
        self, message: str, *, status: int, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(
            f"{message} (status {status}{f', request {request_id}' if request_id else ''})"
        )
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling: errors travel between the processes of a training run."""
        return _restore_error, (type(self), str(self), vars(self))


def _restore_error(
    kind: type["StatusError"], message: str, values: dict[str, Any]
) -> "StatusError":
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(values)
    return error


class InvalidRequest(StatusError):
    """The request is not valid; sending it again will not help."""


class InsufficientQuota(StatusError):
    """A hard budget is spent; the call works again once it is raised or its next window begins."""


class AuthenticationFailed(StatusError):
    """The key is missing or wrong (401), or lacks the scope for this call (403)."""


class NotFound(StatusError):
    """There is nothing under this id, or the caller's team may not see it."""


class Conflict(StatusError):
    """The request contradicts the current state."""


class JudgeReplyUnreadable(StatusError):
    """The judge's reply could not be read. Another try is another paid call."""


class ServiceUnavailable(StatusError):
    """The service cannot answer now; the SDK has retried already."""


def error_class(status: int, code: str | None = None) -> type[StatusError]:
    """Return the error class for a status, and for a code where the status is ambiguous."""
    if (status, code) == (502, JUDGE_REPLY):
        return JudgeReplyUnreadable
    if status == 402:
        return InsufficientQuota
    if status in (401, 403):
        return AuthenticationFailed
    if status == 404:
        return NotFound
    if status == 409:
        return Conflict
    return ServiceUnavailable if status == 429 or status >= 500 else InvalidRequest
