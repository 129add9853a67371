"""The transports beneath the retries: each attempt passes here, and is told how much time is left for it."""

import httpx

from markscheme.deadline import EXTENSION


def _stamp(request: httpx.Request) -> None:
    deadline = request.extensions.get(EXTENSION)
    if deadline is not None:
        deadline.stamp(request)


class StampingTransport(httpx.HTTPTransport):
    """Sends as httpx does, once the attempt bears its deadline."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _stamp(request)
        return super().handle_request(request)


class AsyncStampingTransport(httpx.AsyncHTTPTransport):
    """:class:`StampingTransport` for code that awaits."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _stamp(request)
        return await super().handle_async_request(request)
