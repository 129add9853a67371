"""Cap the size of a judge's reply after decompression, against decompression bombs."""

import zlib
from collections.abc import Iterator

import aiohttp

MAX_REPLY_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024


class UnusableReply(Exception):
    """The reply is too large after decompression, or has an encoding that was not asked for."""


async def read_reply(response: aiohttp.ClientResponse) -> bytes:
    """Return a reply's body, decompressed within the cap.

    The request asks for ``identity``, but some proxies compress all the same.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise UnusableReply(
            f"the reply is encoded as {encoding[:20]!r}, and that was not asked for"
        )
    # 32 lets zlib recognise gzip and deflate by their headers.
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding != "identity" else None
    content = bytearray()
    async for chunk in response.content.iter_any():
        for piece in (chunk,) if decompressor is None else _decompressed(decompressor, chunk):
            content += piece
            if len(content) > MAX_REPLY_BYTES:
                raise UnusableReply("the reply is too large")
    return bytes(content)


def _decompressed(decompressor: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
    while chunk:
        try:
            # In pieces, so that the cap applies before all of it is decompressed.
            piece = decompressor.decompress(chunk, PIECE_BYTES)
        except zlib.error as error:
            raise UnusableReply("the reply cannot be decompressed") from error
        chunk = decompressor.unconsumed_tail
        yield piece
