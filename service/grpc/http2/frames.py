"""HTTP/2 frames: their layout, functions that build them, and the reader that finds them in bytes.

Source: RFC 9113 (HTTP/2).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types (RFC 9113, 6).
DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9
_HEADER_FRAMES = frozenset((HEADERS, CONTINUATION))

# Flags. END_STREAM and ACK are the same bit in different frames.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20

# Error codes (RFC 9113, 7).
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

# Settings (RFC 9113, 6.5.2).
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

# Sizes in bytes, until SETTINGS change them.
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 2**24 - 1
LARGEST_HEADER_LIST = 2**32 - 1  # the largest value of a setting; a peer without one has no limit

# Length (24 bits, here as 16 and 8), type, flags, stream id.
FRAME_HEADER = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")
_STREAM_ID = 2**31 - 1  # the 32nd bit is reserved
# HEADERS open a call, which takes some 100 us; the unit is that of `core.turns`.
_HEADERS_COST = 10
_PRIORITY_FIELDS = 5  # bytes at the start of a HEADERS frame with PRIORITISED

# Type, flags, stream id, payload.
Frame = tuple[int, int, int, bytes]


class ProtocolError(Exception):
    """A connection error (RFC 9113, 5.4.1): GOAWAY carries `code` and the message to the peer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamError(Exception):
    """A stream error (RFC 9113, 5.4.2): RST_STREAM carries `code`; the connection continues."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class FrameReader:
    """Splits the bytes of a peer into frames; keeps an unfinished frame for the next call."""

    def __init__(self, max_frame: int, max_header_block: int) -> None:
        self.preface_received = False
        self._max_frame = max_frame
        self._max_header_block = max_header_block
        self.has_frame = False  # that `frames` has left unread
        self.cost = 0
        self._buffer = bytearray()
        # Flags, stream id and bytes of a header block whose CONTINUATION frames are missing. The
        # cost counts its frame headers as well, so that empty CONTINUATION frames have an end.
        self._unfinished_block: tuple[int, int, bytearray] | None = None
        self._block_cost = 0

    @property
    def unfinished_headers(self) -> int | None:
        """The stream of a header block that is begun and not ended."""
        if self.has_frame:
            return None
        if self._unfinished_block is not None:
            return self._unfinished_block[1]
        if self.preface_received and len(self._buffer) >= FRAME_HEADER.size:
            _, _, kind, _, stream_id = FRAME_HEADER.unpack_from(self._buffer)
            return stream_id & _STREAM_ID if kind == HEADERS else None
        return None

    def frames(self, data: bytes, at_most: int = sys.maxsize) -> Iterator[Frame]:
        """Yield the frames that `data` completes. Exhaust the iterator before the next call.

        After frames that cost `at_most` it ends, and `has_frame` says whether the next call has one
        to yield without more data. `cost` is that of the frames so far: as `core.turns` counts it.
        A header block comes as one HEADERS frame: CONTINUATION frames are appended to it, padding
        and priority fields removed. Raises ProtocolError after the frames that precede the error.
        """
        buffer = self._with_unread(data) if self._buffer else data
        position, end = 0, len(buffer)
        self.has_frame = False
        self.cost = 0
        if not self.preface_received:
            start = bytes(buffer[: len(PREFACE)])
            if not PREFACE.startswith(start):
                raise ProtocolError(PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
            if len(start) < len(PREFACE):
                self._buffer = bytearray(start)
                return
            self.preface_received = True
            position = len(PREFACE)
        while end - position >= FRAME_HEADER.size:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(buffer, position)
            size = high << 8 | low
            if size > self._max_frame:
                raise ProtocolError(FRAME_SIZE_ERROR, "a frame is larger than allowed")
            start_of_payload = position + FRAME_HEADER.size
            if end - start_of_payload < size:
                break
            if self.cost >= at_most:
                self.has_frame = True
                break
            self.cost += _HEADERS_COST if kind in _HEADER_FRAMES else 1
            position = start_of_payload + size
            stream_id &= _STREAM_ID
            payload = copy_slice(buffer, start_of_payload, position)
            if kind not in _HEADER_FRAMES and self._unfinished_block is None:
                yield kind, flags, stream_id, payload
            elif (headers := self._join_header_block(kind, flags, stream_id, payload)) is not None:
                yield headers
        if buffer is self._buffer:
            del self._buffer[:position]
        elif position < end:
            self._buffer += buffer[position:]

    def _with_unread(self, data: bytes) -> bytes | bytearray:
        """The bytes to read now; those that are no whole frame go into the buffer again."""
        if len(data) < len(self._buffer):
            self._buffer += data
            return self._buffer
        # Slices of bytes cost less than those of a bytearray.
        joined = b"".join((self._buffer, data))
        self._buffer.clear()
        return joined

    def _join_header_block(
        self, kind: int, flags: int, stream_id: int, payload: bytes
    ) -> Frame | None:
        """Return a HEADERS frame with its whole header block, or None if more has to come."""
        if self._unfinished_block is not None:
            if kind != CONTINUATION:
                raise ProtocolError(PROTOCOL_ERROR, "a header block was interrupted")
            first_flags, first_id, block = self._unfinished_block
            if stream_id != first_id:
                raise ProtocolError(PROTOCOL_ERROR, "a continuation of another stream's headers")
            self._block_cost += FRAME_HEADER.size + len(payload)
            if self._block_cost > self._max_header_block:
                raise ProtocolError(ENHANCE_YOUR_CALM, "headers larger than allowed")
            block += payload
            if not flags & END_HEADERS:
                return None
            self._unfinished_block = None
            return HEADERS, first_flags | END_HEADERS, stream_id, bytes(block)
        if kind == CONTINUATION:
            raise ProtocolError(PROTOCOL_ERROR, "a continuation without headers")
        content = without_padding(payload) if flags & PADDED else payload
        if flags & PRIORITISED:
            if len(content) < _PRIORITY_FIELDS:
                raise ProtocolError(FRAME_SIZE_ERROR, "headers shorter than their priority fields")
            content = content[_PRIORITY_FIELDS:]
        if len(content) > self._max_header_block:
            raise ProtocolError(ENHANCE_YOUR_CALM, "headers larger than allowed")
        if flags & END_HEADERS:
            return HEADERS, flags, stream_id, content
        self._unfinished_block = flags, stream_id, bytearray(content)
        self._block_cost = len(content)
        return None


def copy_slice(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """Copy a part of a buffer once; `bytes(bytearray[start:end])` would copy it twice."""
    if isinstance(buffer, bytes):
        return buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])


def without_padding(payload: bytes) -> bytes:
    """Remove the padding from the payload of a PADDED frame. Raises ProtocolError."""
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the (identifier, value) pairs of a SETTINGS frame. Raises ProtocolError."""
    if len(payload) % _SETTING.size:
        raise ProtocolError(FRAME_SIZE_ERROR, "a SETTINGS frame has a wrong size")
    return list(_SETTING.iter_unpack(payload))


def read_word(payload: bytes) -> int:
    """Return the number in a RST_STREAM or WINDOW_UPDATE frame. Raises ProtocolError."""
    if len(payload) != _WORD.size:
        raise ProtocolError(FRAME_SIZE_ERROR, "a frame of four bytes has a wrong size")
    return int(_WORD.unpack(payload)[0]) & LARGEST_WINDOW


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def header(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    """The header of a frame whose payload has `size` bytes."""
    return FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def headers(flags: int, stream_id: int, block: bytes, max_frame: int) -> bytes:
    """Build a HEADERS frame, and CONTINUATION frames if the block is larger than `max_frame`."""
    size = len(block)
    if size <= max_frame:
        flags |= END_HEADERS
        return FRAME_HEADER.pack(size >> 8, size & 0xFF, HEADERS, flags, stream_id) + block
    parts = [frame(HEADERS, flags, stream_id, block[:max_frame])]
    for start in range(max_frame, size, max_frame):
        end = start + max_frame
        end_headers = END_HEADERS if end >= size else 0
        parts.append(frame(CONTINUATION, end_headers, stream_id, block[start:end]))
    return b"".join(parts)


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def window_update(stream_id: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, _WORD.pack(size))


def reset(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, _WORD.pack(code))


def goaway(last_stream_id: int, code: int, reason: str) -> bytes:
    return frame(GOAWAY, 0, 0, _WORD.pack(last_stream_id) + _WORD.pack(code) + reason.encode())
