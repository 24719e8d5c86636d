"""The legal and almost legal requests that held the event loop of a worker the longest.

Each is what one caller can send with default settings. docs/decisions/event-loop.md has their
times.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

MOST_BYTES = 8 * 1024 * 1024  # max_request_bytes
MOST_JSON = 2 * 1024 * 1024  # max_json_bytes
JSON, OCTETS, PNG, JPEG = "application/json", "application/octet-stream", "image/png", "image/jpeg"
PREDICT, INFER = "/predict", "/v2/models/mnist/infer"
_HEADER = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":'


class Abuse(NamedTuple):
    """A POST request, with the status that it deserves."""

    name: str
    path: str
    content_type: str
    body: bytes
    status: int


class GrpcAbuse(NamedTuple):
    """A serialized ModelInferRequest, with the status that it deserves."""

    name: str
    message: bytes
    code: str


def repeated(begin: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """As many units as fit between a begin and an end into `size` bytes."""
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def http_abuses() -> Iterator[Abuse]:
    """Over HTTP, one at a time: together they have some 100 MB."""
    for name, unit in (
        ("lists", b"[0],"),
        ("empty lists", b"[],"),
        ("objects", b'{"a":0},'),
        ("deep lists", b"[" * 900 + b"]" * 900 + b","),
        ("strings", b'"a",'),
        ("integers", b"0,"),
        ("floats", b"1.5,"),
    ):
        yield Abuse(name, PREDICT, JSON, repeated(b"[", unit, b"0]", MOST_JSON), 400)
        over = repeated(b"[", unit, b"0]", 7_600_000)
        yield Abuse(f"{name}, 7.6 MB", PREDICT, JSON, over, 413)
    keys = b",".join(b'"%x":0' % number for number in range(MOST_JSON // 11))
    yield Abuse("keys", PREDICT, JSON, b"{" + keys + b"}", 400)
    yield Abuse(
        "infer integers", INFER, JSON, repeated(_HEADER + b"[", b"0,", b"0]}]}", MOST_JSON), 400
    )
    # The largest below the limit on lists, and below INLINE_BYTES.
    yield Abuse("128 KB of lists", PREDICT, JSON, repeated(b"[", b"[0],", b"[0]]", 128_000), 400)
    yield Abuse("32 KB of lists", PREDICT, JSON, repeated(b"[", b"[0],", b"[0]]", 32_000), 400)
    image = b"[" + b"0," * 783 + b"0]"
    yield Abuse("900 images", PREDICT, JSON, repeated(b"[", image + b",", image + b"]", 10**6), 200)
    yield Abuse("10,699 raw images", PREDICT, OCTETS, bytes(784 * 10_699), 200)
    for form, content_type, unit in (
        ("PNG", PNG, _chunk(b"abCd")),
        ("PNG", PNG, _chunk(b"tEXt", b"a\0b")),
        ("PNG", PNG, _chunk(b"IDAT")),
        ("JPEG", JPEG, b"\xff\xe1\0\2"),
        ("JPEG", JPEG, b"\xff"),
    ):
        file = io.BytesIO()
        Image.new("L", (28, 28), 255).save(file, form)
        picture = file.getvalue()
        head = 33 if form == "PNG" else 2
        body = repeated(picture[:head], unit, picture[head:], 8_000_000)
        yield Abuse(f"{form} of {unit[:8]!r}", PREDICT, content_type, body, 400)


def grpc_abuses() -> Iterator[GrpcAbuse]:
    """Over gRPC, for ModelInfer."""
    most = MOST_BYTES - 1024
    for name, unit in (
        ("outputs", b"\x32\0"),
        ("inputs", b"\x2a\0"),
        ("raw contents", b"\x3a\0"),
        ("ids", b"\x1a\0"),
        ("unknown fields", b"\xf8\x07\0"),
        ("unknown groups", b"\xfb\x07\xfc\x07"),
    ):
        yield GrpcAbuse(f"empty {name}", unit * (most // len(unit)), "INVALID_ARGUMENT")
    parameters = b"".join(b"\x22\x09\x0a\x07%07x" % number for number in range(most // 11))
    yield GrpcAbuse("parameters", parameters, "INVALID_ARGUMENT")
    for size in (MOST_JSON - 1024, most):
        for name, unit in (
            ("int64", b"\x1a" + _varint(size) + bytes(size)),
            ("strings", b"\x42\0" * (size // 2)),
            ("bools", b"\x08\1" * (size // 2)),
        ):
            contents = b"\x2a" + _varint(len(unit)) + unit
            tensor = b"\x0a\x05image\x12\x05UINT8\x1a\x03\x01\x1c\x1c" + contents
            message = b"\x0a\x05mnist\x2a" + _varint(len(tensor)) + tensor
            yield GrpcAbuse(f"{size >> 20} MiB of {name}", message, "INVALID_ARGUMENT")


def _chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
