"""Content encodings, over HTTP and gRPC: the first byte chooses the encoding and the limit."""

from __future__ import annotations

import gzip
import zlib

from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.inflation import WINDOW_BITS, inflate

_LIMITS = (0, 1, 100, 1000, 1 << 16)
_TEXT = bytes(range(64)) * 4
SEEDS = [
    b"\0" + gzip.compress(_TEXT, mtime=0),
    b"\x09" + gzip.compress(_TEXT, mtime=0) * 3,
    b"\x0b" + zlib.compress(_TEXT),
    b"\x0e" + zlib.compress(bytes(1 << 20)),
    b"\x0c" + gzip.compress(bytes(1 << 20), mtime=0),
    b"\x0c" + gzip.compress(b"", mtime=0) * 65,
]


def check(data: bytes) -> None:
    choice, content = data[0] if data else 0, data[1:]
    encodings = list(WINDOW_BITS)
    encoding = encodings[choice % len(encodings)]
    limit = _LIMITS[choice // len(encodings) % len(_LIMITS)]
    try:
        inflated = inflate(content, encoding, limit)
    except RequestTooLarge:
        # The reference confirms that it is larger.
        assert len(_reference(content, encoding, limit + 1)) > limit
        return
    except InvalidArgument:
        return
    assert len(inflated) <= limit
    assert inflated == _reference(content, encoding, limit + 1)


def _reference(content: bytes, encoding: str, size: int) -> bytes:
    """The first `size` bytes, one small step at a time."""
    result = b""
    while content and len(result) < size:
        stream = zlib.decompressobj(WINDOW_BITS[encoding])
        result += stream.decompress(content, size - len(result))
        while stream.unconsumed_tail and len(result) < size:
            result += stream.decompress(stream.unconsumed_tail, size - len(result))
        content = stream.unused_data
    return result
