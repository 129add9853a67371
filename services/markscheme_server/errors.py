"""What a caller did that cannot be done, one class a kind of answer.

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

A judge's failure is not here: inside a batch it becomes a null reward with a reason
(``markscheme_server.judge.base.JudgeFailure``).
"""


class ServiceError(Exception):
    """An answer other than success. ``message`` is shown to the caller and says what to do."""

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
    status = 400
    type = "invalid_request_error"


class Unauthorised(ServiceError):
    status = 401
    type = "authentication_error"


class PaymentRequired(ServiceError):
    """A hard budget is reached: the same call will not do until someone raises it or its next window begins."""

    status = 402
    type = "insufficient_quota"


class Forbidden(ServiceError):
    status = 403
    type = "permission_error"


class NotFound(ServiceError):
    status = 404
    type = "not_found_error"


class Conflict(ServiceError):
    status = 409
    type = "conflict_error"


class TooLarge(ServiceError):
    status = 413
    type = "invalid_request_error"


class Unprocessable(ServiceError):
    status = 422
    type = "invalid_request_error"


class TooManyRequests(ServiceError):
    status = 429
    type = "rate_limit_error"


class BadGateway(ServiceError):
    """A judge or teacher replied, and the reply is of no use. Asking again costs again."""

    status = 502
    type = "judge_error"


class Unavailable(ServiceError):
    status = 503
    type = "unavailable_error"
