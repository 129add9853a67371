"""The transports beneath the retries: each attempt passes here, and is told how much time is left for it.

What the retries cannot see, an answer's code and message, is looked at here: a judge's reply that
could not be read is raised at once, for each try is paid for. Any other answer goes up to them.
"""

import httpx

from markscheme.deadline import EXTENSION
from markscheme.protocol import error_from_response

BAD_GATEWAY = 502
FINAL_CODES = frozenset({"judge_reply", "misconfigured", "quota"})
"""Codes of a 502 that another try meets again."""


def _apply_deadline(request: httpx.Request) -> None:
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None:
        deadline.stamp(request)


def _check_error_response(request: httpx.Request, response: httpx.Response) -> None:
    """Raise what another try would only pay for again; note what the service said, for when time runs out."""
    error = error_from_response(response)
    if response.status_code == BAD_GATEWAY and error.code in FINAL_CODES:
        raise error
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None and error.code is not None:
        deadline.last_message = error.message


class DeadlineTransport(httpx.HTTPTransport):
    """Sends as httpx does, once the attempt bears its deadline.

    Raises :class:`StatusError` for a 502 that is the judge's and not a proxy's.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _apply_deadline(request)
        response = super().handle_request(request)
        if response.status_code >= 400:
            response.read()
            _check_error_response(request, response)
        return response


class AsyncDeadlineTransport(httpx.AsyncHTTPTransport):
    """:class:`DeadlineTransport` for code that awaits."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _apply_deadline(request)
        response = await super().handle_async_request(request)
        if response.status_code >= 400:
            await response.aread()
            _check_error_response(request, response)
        return response
