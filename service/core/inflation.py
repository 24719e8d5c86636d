"""Decompresses gzip and deflate, with a limit on the size of the result.

`deflate` is the zlib format (RFC 1950), in HTTP (RFC 9110, 8.4.1) as in gRPC.
"""

from __future__ import annotations

import zlib

from service.core.errors import InvalidArgument, RequestTooLarge

# zlib selects the format by its window bits.
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# What a byte can become at most (https://zlib.net/zlib_tech.html).
MAX_RATIO = 1032
# Every member costs a copy of all bytes after it.
_MAX_MEMBERS = 64


def inflate(content: bytes, encoding: str, limit: int) -> bytes:
    """Decompress `content`, whose `encoding` is a key of WINDOW_BITS.

    Raises RequestTooLarge if the result exceeds `limit` bytes, InvalidArgument if it is damaged.
    """
    # A list of parts, joined at the end: with one member, that makes no copy.
    parts: list[bytes] = []
    size = members = 0
    try:
        while content:  # a gzip file may consist of several members (RFC 1952, 2.2)
            members += 1
            if members > _MAX_MEMBERS:
                raise InvalidArgument(f"The body has more than {_MAX_MEMBERS} {encoding} members.")
            stream = zlib.decompressobj(WINDOW_BITS[encoding])
            parts.append(stream.decompress(content, limit + 1 - size))
            size += len(parts[-1])
            if size > limit:
                raise RequestTooLarge.of("decompressed body", limit)
            if not stream.eof:
                raise InvalidArgument(f"The body's {encoding} data ends too early.")
            content = stream.unused_data
    except zlib.error as error:
        raise InvalidArgument(f"The body is not valid {encoding}: {error}.") from None
    return b"".join(parts)
