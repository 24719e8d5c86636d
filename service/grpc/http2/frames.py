"""What gRPC looks like in HTTP/2: frames, headers, length-prefixed messages, trailers.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple
from urllib.parse import quote

import grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types (RFC 9113, 6).
(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
# Flags; END_STREAM and ACK are the same bit of different frames.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20
# Error codes (RFC 9113, 7).
(
    NO_ERROR,
    PROTOCOL_ERROR,
    _,
    FLOW_CONTROL_ERROR,
    _,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    _,
    ENHANCE_YOUR_CALM,
) = range(12)
# Settings (RFC 9113, 6.5.2).
(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)

DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
DEFAULT_FRAME = 16_384
# What a peer may send of one stream before it must wait.
STREAM_WINDOW = 1 << 20

FRAME_HEAD = struct.Struct(">HBBBI")
MESSAGE_HEAD = struct.Struct(">BI")
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")

STATUS_CODES: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class ConnectionFailed(Exception):
    """The peer broke HTTP/2 in a way that ends the connection; `code` says which."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Trailers(NamedTuple):
    """How a call ended."""

    code: str
    message: str
    request_id: str


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return FRAME_HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a SETTINGS frame. Raises ConnectionFailed."""
    if len(payload) % _SETTING.size:
        raise ConnectionFailed(FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
    return list(_SETTING.iter_unpack(payload))


def window_update(stream: int, size: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, _WORD.pack(size))


def read_word(payload: bytes) -> int:
    """The number that is a RST_STREAM or WINDOW_UPDATE frame. Raises ConnectionFailed."""
    if len(payload) != _WORD.size:
        raise ConnectionFailed(FRAME_SIZE_ERROR, "a frame of a wrong size")
    return int(_WORD.unpack(payload)[0]) & LARGEST_WINDOW


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _WORD.pack(code))


def goaway(last_stream: int, code: int, reason: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, _WORD.pack(last_stream) + _WORD.pack(code) + reason.encode())


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a HEADERS or DATA frame without its padding. Raises ConnectionFailed."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that HPACK leaves as it is (RFC 7541, 6.2.2): no table to keep in step."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    """A length with a prefix of 7 bits (RFC 7541, 5.1)."""
    if size < 0x7F:
        return bytes([size])
    encoded, size = [0x7F], size - 0x7F
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])


_STATUS_200 = b"\x88"  # index 8 of HPACK's static table
_GRPC = _literal(b"content-type", b"application/grpc")
RESPONSE_HEADERS = _STATUS_200 + _GRPC + _literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_STATUS_OK = _literal(b"grpc-status", b"0")
_REQUEST_ID = b"\0" + _length(12) + b"x-request-id"


def trailers(end: Trailers, alone: bool) -> bytes:
    """The header block that ends a call; `alone` if there were no headers before it."""
    code, message, request_id = end
    encoded = request_id.encode()
    block = _REQUEST_ID + _length(len(encoded)) + encoded
    if code == "OK":
        block = _STATUS_OK + block
    else:
        block += _literal(b"grpc-status", str(STATUS_CODES[code]).encode())
        block += _literal(
            b"grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}").encode()
        )
    return RESPONSE_HEADERS + block if alone else block


def http_error(status: int) -> bytes:
    """The header block of an answer to what is no gRPC call."""
    return _literal(b":status", str(status).encode())


def read_timeout(text: str) -> float | None:
    """The seconds of a grpc-timeout header, or None if it is none."""
    match = _TIMEOUT.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None
