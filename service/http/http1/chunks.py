"""A chunked body (RFC 9112, 7.1): bytes in, content out."""

from __future__ import annotations

import re

from service.http.http1.heads import Malformed

# A chunk's size, hexadecimal. Extensions are ignored: no extension is in use.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_MAX_LINE = 1024  # bytes of a size with its extensions
_MAX_TRAILERS = 16 * 1024
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")
# Chunks that are taken out in one go. A read may bring ten thousand, at a microsecond each.
_MOST_CHUNKS = 256
_SIZE, _CONTENT, _CONTENT_END, _TRAILERS = range(4)


class ChunkedBody:
    """What has arrived of a chunked body. `is_complete` once the last chunk and trailers have."""

    def __init__(self) -> None:
        self.is_complete = False
        self._expects = _SIZE
        self._left = 0  # bytes of the current chunk
        self._trailer_bytes = 0

    def take(self, content: bytes) -> tuple[bytes, bytes]:
        """Take the content out of received bytes; return it, and the bytes that are left.

        What is left begins with a line that is not complete, follows the body (`is_complete`), or
        is more than is taken in one go: then content was returned. Raises Malformed.
        """
        pieces: list[bytes] = []
        position = 0
        while position < len(content) and not self.is_complete and len(pieces) < _MOST_CHUNKS:
            if self._expects == _CONTENT:
                piece = content[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._expects = _CONTENT_END
            elif self._expects == _CONTENT_END:
                end = content[position : position + 2]
                if not b"\r\n".startswith(end):
                    raise Malformed("A chunk of the body is longer than its size.")
                if len(end) < 2:
                    break
                position += 2
                self._expects = _SIZE
            else:
                end_of_line = content.find(b"\r\n", position, position + _MAX_LINE + 2)
                if end_of_line < 0:
                    if len(content) - position > _MAX_LINE:
                        raise Malformed("A line of the chunked body is too long.")
                    if b"\n" in content[position:]:
                        raise Malformed("A line of the chunked body does not end with CR LF.")
                    break
                self._line(content[position:end_of_line])
                position = end_of_line + 2
        return b"".join(pieces), content[position:]

    def _line(self, line: bytes) -> None:
        if self._expects == _SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise Malformed("The size of a chunk is not a hexadecimal number.")
            self._left = int(match[1], 16)
            self._expects = _CONTENT if self._left else _TRAILERS
        elif not line:
            self.is_complete = True
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _MAX_TRAILERS or not _TRAILER.fullmatch(line):
                raise Malformed("The trailers of the chunked body are malformed or too long.")
