"""Cap the size of a judge's reply after decompression, against decompression bombs."""

import zlib
from collections.abc import AsyncIterator, Iterator

import httpx2

MAX_REPLY_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024


class UnusableReply(Exception):
    """The reply is too large after decompression, or has an encoding that was not asked for."""


async def cap_reply(response: httpx2.Response) -> None:
    """Decompress a reply within the cap. An httpx2 response hook; the client itself has no cap.

    The request asks for ``identity``, but some proxies compress all the same.
    """
    # Whatever the header says: JSON is UTF-8, and some of Python's codecs, as `hex`, yield no text.
    response.encoding = "utf-8"
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise UnusableReply(
            f"the reply is encoded as {encoding[:20]!r}, and that was not asked for"
        )
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        raise TypeError("the reply is not a stream")
    response.stream = _CappedStream(response.stream, compressed=encoding != "identity")


class _CappedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, *, compressed: bool) -> None:
        self._stream = stream
        # 32 lets zlib recognise gzip and deflate by their headers.
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32) if compressed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        bytes_left = MAX_REPLY_BYTES
        async for chunk in self._stream:
            for piece in self._decompress(chunk):
                bytes_left -= len(piece)
                if bytes_left < 0:
                    raise UnusableReply("the reply is too large")
                yield piece

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        if self._decompressor is None:
            yield chunk
            return
        while chunk:
            try:
                # In pieces, so that the cap applies before all of it is decompressed.
                piece = self._decompressor.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise UnusableReply("the reply cannot be decompressed") from error
            chunk = self._decompressor.unconsumed_tail
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
