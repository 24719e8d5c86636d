"""Undoing gzip and deflate, with a bound on what comes out.

`deflate` is the zlib format (RFC 1950), in HTTP (RFC 9110, 8.4.1) as in gRPC.
"""

from __future__ import annotations

import zlib

from service.core.errors import InvalidArgument, RequestTooLarge

# zlib's window bits, by which it knows the format.
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# Each costs a copy of the ones after it.
_MOST_MEMBERS = 64


def inflate(content: bytes, encoding: str, limit: int) -> bytes:
    """The content as it was before it was compressed.

    Raises RequestTooLarge if that is more than `limit` bytes, InvalidArgument if it is damaged.
    """
    made = bytearray()
    members = 0
    try:
        while content:  # gzip allows several members, one after the other (RFC 1952, 2.2)
            members += 1
            if members > _MOST_MEMBERS:
                raise InvalidArgument(f"The body has more than {_MOST_MEMBERS} {encoding} members.")
            stream = zlib.decompressobj(WINDOW_BITS[encoding])
            made += stream.decompress(content, limit + 1 - len(made))
            if len(made) > limit:
                raise RequestTooLarge(
                    f"The body is larger than {limit} bytes once decompressed (max_request_bytes)."
                )
            if not stream.eof:
                raise InvalidArgument(f"The body's {encoding} data ends too early.")
            content = stream.unused_data
    except zlib.error as error:
        raise InvalidArgument(f"The body is not valid {encoding}: {error}.") from None
    return bytes(made)
