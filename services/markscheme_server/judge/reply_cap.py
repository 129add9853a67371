"""A bound on what a judge may send: counted after decompression, so that a small bomb does not become a large one."""

import zlib
from collections.abc import AsyncIterator, Iterator

import httpx2

MOST_REPLY_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024


class UnusableReply(Exception):
    """The reply, inflated, is larger than any verdict or rubric could be, or packed in a way we did not ask for."""


async def cap_reply(response: httpx2.Response) -> None:
    """An httpx2 response hook: inflate here, within the bound, instead of in the client, without one."""
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise UnusableReply(
            f"the reply is encoded as {encoding[:20]!r}, and that was not asked for"
        )
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        raise TypeError("the reply is not a stream")
    response.stream = _Capped(response.stream, packed=encoding != "identity")


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, *, packed: bool) -> None:
        self._stream = stream
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        room = MOST_REPLY_BYTES
        async for chunk in self._stream:
            for piece in self._inflated(chunk):
                room -= len(piece)
                if room < 0:
                    raise UnusableReply("the reply is too large")
                yield piece

    def _inflated(self, chunk: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            yield chunk
            return
        while chunk:
            try:
                piece = self._inflate.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise UnusableReply("the reply does not inflate") from error
            chunk = self._inflate.unconsumed_tail
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
