"""Measures a protobuf message before it is parsed, by a walk over its fields.

Parsing holds Python's global lock to its end, and every small message in a message costs time and
memory: 8 MB can hold 4 million empty ones, which take 0.1 s to parse, 4 s to read and 1.4 GB. Bytes
fields of the message itself, such as raw tensors, cost next to nothing. So only the rest is
limited.

Source: protobuf's "Encoding" (wire types, tags and varints).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from service.core.errors import InvalidArgument, RequestTooLarge

# Up to this many bytes, a message takes less than a millisecond whatever it consists of.
SMALL_BYTES = 4096
_MAX_FIELDS = 2048  # of the message and of the messages in it


class Shape:
    """What the walk needs to know of a message class: its fields of bytes and of messages."""

    __slots__ = ("bytes_fields", "message_fields")

    def __init__(self, descriptor: Descriptor) -> None:
        fields = descriptor.fields
        self.bytes_fields = {f.number for f in fields if f.type == FieldDescriptor.TYPE_BYTES}
        self.message_fields = {f.number for f in fields if f.type == FieldDescriptor.TYPE_MESSAGE}


@cache
def shape_of(message_class: Any) -> Shape:
    """The shape of a generated class."""
    return Shape(message_class.DESCRIPTOR)


def check(content: bytes, shape: Shape, limit: int) -> int:
    """The size of a message without its own bytes fields; all of it if it is malformed.

    Raises RequestTooLarge if that is more than `limit` bytes (max_json_bytes), InvalidArgument if
    the message has too many fields.
    """
    try:
        rest = _rest(content, shape)
    except DecodeError:
        rest = len(content)
    if rest > limit:
        raise RequestTooLarge(
            f"The message has more than {limit} bytes (max_json_bytes) besides raw contents; send "
            "the values of tensors as raw_input_contents."
        )
    return rest


def _rest(content: bytes, shape: Shape) -> int:
    rest = len(content)
    fields = 0
    parts = [(0, len(content))]  # the message, then the messages in it
    is_top = True
    while parts:
        position, end = parts.pop()
        while position < end:
            fields += 1
            if fields > _MAX_FIELDS:
                raise InvalidArgument(
                    f"The message has more than {_MAX_FIELDS} fields; send the values of a tensor "
                    "as raw_input_contents."
                )
            tag, position = _varint(content, position, end)
            kind = tag & 7
            if kind == 2:
                size, position = _varint(content, position, end)
                if is_top and tag >> 3 in shape.bytes_fields:
                    rest -= size
                elif is_top and tag >> 3 in shape.message_fields:
                    parts.append((position, position + size))
                position += size
            elif kind == 0:
                _, position = _varint(content, position, end)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            elif kind not in (3, 4):  # the begin and end of a group have no content of their own
                raise DecodeError
        if position > end:
            raise DecodeError
        is_top = False
    return rest


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """A varint and the position after it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise DecodeError
