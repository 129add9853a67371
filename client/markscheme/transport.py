"""The transports beneath the retries: each attempt passes here, and is told how much time is left for it.

What the retries cannot see, an answer's code, is looked at here: a judge's reply that could not be
read is raised at once, for each try is paid for. Any other answer goes up to them.
"""

import httpx

from markscheme.deadline import EXTENSION
from markscheme.errors import JudgeReplyUnreadable
from markscheme.protocol import stated_error

BAD_GATEWAY = 502


def _stamp(request: httpx.Request) -> None:
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None:
        deadline.stamp(request)


def _refuse_paid_tries(response: httpx.Response) -> None:
    error = stated_error(response)
    if isinstance(error, JudgeReplyUnreadable):
        raise error


class StampingTransport(httpx.HTTPTransport):
    """Sends as httpx does, once the attempt bears its deadline.

    Raises :class:`JudgeReplyUnreadable`.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _stamp(request)
        response = super().handle_request(request)
        if response.status_code == BAD_GATEWAY:
            response.read()
            _refuse_paid_tries(response)
        return response


class AsyncStampingTransport(httpx.AsyncHTTPTransport):
    """:class:`StampingTransport` for code that awaits."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _stamp(request)
        response = await super().handle_async_request(request)
        if response.status_code == BAD_GATEWAY:
            await response.aread()
            _refuse_paid_tries(response)
        return response
