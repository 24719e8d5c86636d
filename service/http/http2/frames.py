"""Splits what an HTTP/2 client sends into whole frames, ahead of the library h2.

h2 processes all the bytes it gets at once, checks the size of a frame when all of it has arrived,
and ends open requests too when the client sends GOAWAY. It keeps every setting, even an
unknown one, and walks through all of them for each SETTINGS frame: 65,536 would take 55 MB, and
4 ms per frame. So this module bounds the size of a frame and of a header block, gives h2 a limited
number of frames at a time, and filters GOAWAY and unknown settings out.

Source: RFC 9113 (HTTP/2), 3.4, 4.1, 6.5 and 6.8.
"""

from __future__ import annotations

from h2.errors import ErrorCodes
from h2.settings import SettingCodes

MAX_FRAME = 16 * 1024
# Bytes of a header block, and of the list that it stands for, as h2 counts it.
MAX_HEADER_BLOCK = 64 * 1024
# What a frame costs in h2 and here, in the unit of `core.turns`. A header block costs as much again
# per this many bytes, since each byte may stand for a header.
_FRAME_COST = 4
_BYTES_PER_FRAME_COST = 12
_HEADER = 9
_HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 1, 4, 7, 9
_ACK, _END_HEADERS = 1, 4
_SETTING = 6  # bytes of one
_KNOWN_SETTINGS = frozenset(code.to_bytes(2, "big") for code in SettingCodes)


def goaway(last_stream_id: int, code: ErrorCodes) -> bytes:
    """GOAWAY as a frame; h2 takes its own for the end of what can be sent."""
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big")
    return len(payload).to_bytes(3, "big") + bytes([_GOAWAY]) + bytes(5) + payload


def _known_settings(frame: bytes) -> bytes:
    """A SETTINGS frame without the settings that are to be ignored; each once, with its last value.

    A frame of a wrong size stays as it is, for h2 to refuse.
    """
    payload = frame[_HEADER:]
    if len(payload) % _SETTING:
        return frame
    settings = {
        code: payload[position : position + _SETTING]
        for position in range(0, len(payload), _SETTING)
        if (code := payload[position : position + 2]) in _KNOWN_SETTINGS
    }
    known = b"".join(settings.values())
    return len(known).to_bytes(3, "big") + frame[3:_HEADER] + known


class Breach(Exception):
    """The client breaks a rule; the connection ends with this code."""

    def __init__(self, code: ErrorCodes) -> None:
        super().__init__(code.name)
        self.code = code


class FrameReader:
    """What has arrived after the preface and was not taken yet."""

    def __init__(self) -> None:
        self.is_client_leaving = False  # it has sent GOAWAY
        self.has_more = False  # whole frames may be left
        self.cost = 0  # of what was taken last, as `core.turns` counts it
        self._received = bytearray()
        self._units = 0  # whole frames and header blocks that were taken
        self._has_settings = False
        self._block: int | None = None  # bytes of the header block that has begun

    def add(self, data: bytes) -> None:
        """Append received bytes."""
        self._received += data

    @property
    def unfinished(self) -> int | None:
        """A number that stands for the frame or header block whose rest has not arrived."""
        return self._units if self._received or self._block is not None else None

    def take(self, most: int) -> bytes:
        """The next whole frames, until their `cost` adds up to `most`. Raises Breach."""
        received = self._received
        size = len(received)
        kept: list[bytes] = []
        begin = position = cost = 0
        while size - position >= _HEADER and cost < most:
            length = int.from_bytes(received[position : position + 3], "big")
            kind, flags = received[position + 3], received[position + 4]
            if length > MAX_FRAME:
                raise Breach(ErrorCodes.FRAME_SIZE_ERROR)
            if not self._has_settings and (kind != _SETTINGS or flags & _ACK):
                raise Breach(ErrorCodes.PROTOCOL_ERROR)
            is_block = kind in (_HEADERS, _CONTINUATION)
            if is_block and (self._block or 0) + length > MAX_HEADER_BLOCK:
                raise Breach(ErrorCodes.ENHANCE_YOUR_CALM)
            end = position + _HEADER + length
            if end > size:
                break
            cost += _FRAME_COST
            self._has_settings = True
            if is_block:
                cost += _FRAME_COST * (length // _BYTES_PER_FRAME_COST)
                self._block = None if flags & _END_HEADERS else (self._block or 0) + length
            elif kind == _GOAWAY and self._block is None:
                self.is_client_leaving = True
                kept.append(bytes(received[begin:position]))
                begin = end
            elif kind == _SETTINGS and length:
                kept.append(bytes(received[begin:position]))
                kept.append(_known_settings(bytes(received[position:end])))
                begin = end
            self._units += self._block is None
            position = end
        kept.append(bytes(received[begin:position]))
        del received[:position]
        self.cost = cost
        self.has_more = cost >= most and len(received) >= _HEADER
        return kept[0] if len(kept) == 1 else b"".join(kept)
