"""Bodies of HTTP answers, decoded as they arrive and bounded in size.

httpx decodes each chunk whole: 64 KB of gzip may become 66 MB.
"""

from __future__ import annotations

import zlib

from mnist_client.errors import UnexpectedAnswer

ACCEPT_ENCODING = "gzip, deflate"
_DETECT = 32 + zlib.MAX_WBITS  # the header says whether it is gzip or zlib


class Body:
    """Collects the chunks of a body of at most `limit` bytes, decoded and as they are sent.

    `encoding` is the header content-encoding. `add` and `content` raise UnexpectedAnswer.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._sent = self._size = 0
        self._parts: list[bytes] = []
        self._decoder = None
        if encoding.strip().lower() in ("gzip", "x-gzip", "deflate"):
            self._decoder = zlib.decompressobj(_DETECT)
        elif encoding.strip().lower() not in ("", "identity"):
            raise UnexpectedAnswer(f"The answer cannot be read: its encoding is {encoding[:40]!r}.")

    def add(self, chunk: bytes) -> None:
        """Take a chunk as it was sent."""
        self._sent += len(chunk)
        if self._decoder is not None:
            # One byte more than there is room for says that it is too long.
            room = self._limit + 1 - self._size
            try:
                chunk = b"" if self._decoder.eof else self._decoder.decompress(chunk, room)
            except zlib.error as error:
                raise UnexpectedAnswer(f"The answer cannot be read: {error}.") from None
        self._size += len(chunk)
        if max(self._size, self._sent) > self._limit:
            raise UnexpectedAnswer(
                f"The answer has more than {self._limit} bytes (max_answer_bytes)."
            )
        self._parts.append(chunk)

    def content(self) -> bytes:
        """The whole body."""
        if self._decoder is not None and self._sent and not self._decoder.eof:
            raise UnexpectedAnswer("The answer cannot be read: its compressed body ends too early.")
        return b"".join(self._parts)
