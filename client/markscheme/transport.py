"""HTTP transports below the retries: each attempt passes here.

An attempt is given the remaining time of its call. An error that would only be paid for again is
raised at once, before the retry layer sees it; other errors go up to it.
"""

import httpx

from markscheme.deadline import EXTENSION
from markscheme.protocol import error_from_response

BAD_GATEWAY = 502
FINAL_CODES = frozenset({"judge_reply", "misconfigured", "quota"})
"""Codes of a 502 that another attempt would meet again."""


def _apply_deadline(request: httpx.Request) -> None:
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None:
        deadline.stamp(request)


def _check_error_response(request: httpx.Request, response: httpx.Response) -> None:
    """Raise errors that a retry cannot mend; keep the message for the case that time runs out."""
    error = error_from_response(response)
    if response.status_code == BAD_GATEWAY and error.code in FINAL_CODES:
        raise error
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None and error.code is not None:
        deadline.last_message = error.message


class DeadlineTransport(httpx.HTTPTransport):
    """httpx's transport, with the call's deadline on each attempt.

    Raises `StatusError` for a 502 that is the judge's and not a proxy's.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one attempt."""
        _apply_deadline(request)
        response = super().handle_request(request)
        if response.status_code >= 400:
            response.read()
            _check_error_response(request, response)
        return response


class AsyncDeadlineTransport(httpx.AsyncHTTPTransport):
    """`DeadlineTransport` for asyncio."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one attempt."""
        _apply_deadline(request)
        response = await super().handle_async_request(request)
        if response.status_code >= 400:
            await response.aread()
            _check_error_response(request, response)
        return response
