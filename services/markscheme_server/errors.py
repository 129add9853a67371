"""Errors that become HTTP responses, one class per status.

    ServiceError
    ├── BadRequest (400)
    ├── Unauthorised (401)
    ├── PaymentRequired (402)
    ├── Forbidden (403)
    ├── NotFound (404)
    ├── Conflict (409)
    ├── TooLarge (413)
    ├── Unprocessable (422)
    ├── TooManyRequests (429)
    ├── BadGateway (502)
    └── Unavailable (503)

A judge's failure (`markscheme_server.judge.base.JudgeFailure`) is none of them: within a batch it
becomes a null reward with a reason.
"""


class ServiceError(Exception):
    """A response that is not a success.

    Attributes:
        message: Shown to the caller; says what to do.
        code: A stable name for programs.
        param: The field or parameter at fault.
        retry_after_s: Seconds after which a retry may succeed.
    """

    status = 500
    type = "internal_error"

    def __init__(
        self, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """The request is not valid HTTP or JSON, or names too few or too many things."""

    status = 400
    type = "invalid_request_error"


class Unauthorised(ServiceError):
    """The API key is missing, unknown, expired or revoked."""

    status = 401
    type = "authentication_error"


class PaymentRequired(ServiceError):
    """A hard budget is reached; a retry fails until it is raised or its next window begins."""

    status = 402
    type = "insufficient_quota"


class Forbidden(ServiceError):
    """The API key lacks a scope, or the object is another team's."""

    status = 403
    type = "permission_error"


class NotFound(ServiceError):
    """The object does not exist, or the caller may not see it."""

    status = 404
    type = "not_found_error"


class Conflict(ServiceError):
    """The object exists already, or is in a state that does not allow this."""

    status = 409
    type = "conflict_error"


class TooLarge(ServiceError):
    """The request is larger than the service takes."""

    status = 413
    type = "invalid_request_error"


class Unprocessable(ServiceError):
    """A value of the request is invalid."""

    status = 422
    type = "invalid_request_error"


class TooManyRequests(ServiceError):
    """The team sent more than its requests a minute."""

    status = 429
    type = "rate_limit_error"


class BadGateway(ServiceError):
    """A judge or teacher sent an unusable reply. A retry is charged again."""

    status = 502
    type = "judge_error"


class Unavailable(ServiceError):
    """The service, its database or a judge cannot answer now; a retry may succeed."""

    status = 503
    type = "unavailable_error"
