"""What can go wrong between a caller and the service.

    MarkschemeError
    ├── ConnectionFailed          the service was not reached, or the answer broke off
    │   ├── AnswerUnreadable      the answer is not what a Markscheme service of this version says
    │   └── DeadlineExceeded      no answer within the call's deadline_s; a TimeoutError too
    └── StatusError               the service answered, but not with success (status, code, request_id)
        ├── InvalidRequest        400, 413, 415, 422
        ├── InsufficientQuota     402: a hard budget is reached
        ├── AuthenticationFailed  401, 403
        ├── NotFound              404
        ├── Conflict              409; after the retries when the same call is still running
        ├── JudgeReplyUnreadable  502 with the code judge_reply: not retried, each try is paid for
        └── ServiceUnavailable    429 and other 5xx, after the retries

A rollout that could not be scored is none of these: it is an answer with ``reward=None`` and a reason.
"""

from typing import Any

JUDGE_REPLY = "judge_reply"
"""The code of a judge's reply that could not be read; its status, 502, is a broken proxy's too."""


class MarkschemeError(Exception):
    """Base of all errors of the SDK."""


class ConnectionFailed(MarkschemeError):
    """The service was not reached, or its answer broke off."""


class AnswerUnreadable(ConnectionFailed):
    """What came is not what a Markscheme service of this version says; asking again rarely helps."""


class DeadlineExceeded(ConnectionFailed, TimeoutError):
    """The call's deadline passed before there was an answer, or would pass before another try."""


class StatusError(MarkschemeError):
    """An answer other than success."""

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
        """Errors travel between the processes of a training run."""
        return _restore_error, (type(self), str(self), vars(self))


def _restore_error(
    kind: type["StatusError"], message: str, values: dict[str, Any]
) -> "StatusError":
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(values)
    return error


class InvalidRequest(StatusError):
    """The request cannot be done as sent; sending it again will not help."""


class InsufficientQuota(StatusError):
    """A hard budget is reached; the same call will not do until it is raised or its next window begins."""


class AuthenticationFailed(StatusError):
    """The key is missing or wrong."""


class NotFound(StatusError):
    """What was asked for is not there."""


class Conflict(StatusError):
    """The request contradicts what is there."""


class JudgeReplyUnreadable(StatusError):
    """The judge answered, but not with what it was asked for. Another try is another paid call."""


class ServiceUnavailable(StatusError):
    """The service cannot answer now; the SDK has retried already."""


def error_class(status: int, code: str | None = None) -> type[StatusError]:
    """The class for a status, and for a code where the status alone does not say it."""
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
