"""The datatypes of the Open Inference Protocol, and the two of them that numpy does not have.

BF16 tensors are held as uint16 arrays of their bits. BYTES tensors are held as object arrays of
`str`: the only tensors of bytes that a model takes are ONNX strings, and those are UTF-8.

Source: Open Inference Protocol (KServe V2), "Tensor Data Types"; Triton's binary tensor data
extension for the layout of BYTES.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from service.core.errors import InvalidArgument

Array = npt.NDArray[Any]
# What arrives on a socket: bytes, or a part of them without a copy.
Buffer = bytes | memoryview

BF16 = "BF16"
BYTES = "BYTES"
_LENGTH = struct.Struct("<I")

# Protocol name -> numpy dtype; little-endian as the protocol says for raw contents.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BF16: np.dtype("<u2"),
    BYTES: np.dtype(object),
}


def to_bfloat16(array: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Round doubles to bfloat16, ties to even; the bits as uint16. NaN must not be among them."""
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    bits = single.view(np.uint32).copy()
    # By way of float32, but once only: to odd, so that no tie is made that was none.
    exact = single.astype(np.float64)
    bits[np.abs(exact) > np.abs(array)] -= 1
    bits[exact != array] |= 1
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The exact float32 values of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def strings(field: str, elements: Iterable[Any]) -> Array:
    """Elements of a BYTES tensor, `str` or bytes of UTF-8, as a flat object array of `str`.

    Raises InvalidArgument, naming `field`, for an element of another kind or encoding.
    """
    made: list[str] = []
    for element in elements:
        if isinstance(element, str):
            made.append(element)
            continue
        if not isinstance(element, bytes):
            raise InvalidArgument(f"{field} must hold nothing but strings.")
        try:
            made.append(element.decode())
        except UnicodeDecodeError:
            raise InvalidArgument(f"{field}: element {len(made)} is not UTF-8.") from None
    array = np.empty(len(made), object)
    array[:] = made
    return array


def split_bytes(field: str, raw: Buffer, count: int) -> list[bytes]:
    """The `count` elements of raw BYTES contents: each its length as uint32, then its bytes.

    Raises InvalidArgument, naming `field`, if they are more, or end inside an element.
    """
    elements: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        if len(elements) == count:
            raise InvalidArgument(f"{field} has more than the {count} elements of its shape.")
        start = position + _LENGTH.size
        if start > end:
            raise InvalidArgument(f"{field} ends inside the length of element {len(elements)}.")
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > end:
            raise InvalidArgument(f"{field} ends inside element {len(elements)}.")
        elements.append(bytes(raw[start:position]))
    return elements


def join_bytes(array: Array) -> bytes:
    """Raw BYTES contents of an array of `str`, in row-major order."""
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        encoded = element.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def one_element(content: bytes) -> bytes:
    """Raw BYTES contents of a single element."""
    return _LENGTH.pack(len(content)) + content
