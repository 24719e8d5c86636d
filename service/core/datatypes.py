"""The datatypes of the Open Inference Protocol, including the two that numpy lacks.

A BF16 tensor is a uint16 array of its bits. A BYTES tensor is an object array of `str`, as which
ONNX Runtime takes strings. It takes bytes that are not UTF-8 too, but only from an array of numpy's
dtype S, so an input with such an element is one.

Source: Open Inference Protocol (KServe V2), "Tensor Data Types"; Triton's binary tensor data
extension for the layout of BYTES.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.core.errors import InvalidArgument
from service.core.off_loop import PART

Array = npt.NDArray[Any]
# Bytes as they arrive on a socket, or a view of a part of them.
Buffer = bytes | memoryview

BF16 = "BF16"
BYTES = "BYTES"
# In the place of an input that a request leaves out; compare with `is`.
MISSING: Array = np.empty(0, object)
_LENGTH = struct.Struct("<I")
_LARGEST_PADDING = 1 << 20  # bytes

# Protocol name -> numpy dtype. The protocol makes raw contents little-endian.
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
    """Round doubles to bfloat16, ties to even. Returns the bits as uint16."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = array.astype(np.float32)
    bits = single.view(np.uint32).copy()
    # Rounding to float32 first could create a tie that was not there, so float32 is rounded to odd.
    exact = single.astype(np.float64)
    bits[np.abs(exact) > np.abs(array)] -= 1
    bits[exact != array] |= 1
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(array)] = 0x7FC0  # the carry could make another value of it
    return rounded


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The exact float32 values of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def strings(field: str, elements: Sequence[Any]) -> Array:
    """Elements of a BYTES tensor, `str` or bytes, as a flat object array of `str`.

    The array has numpy's dtype S if an element is not UTF-8. Raises InvalidArgument, naming
    `field`, for an element of another type, or for bytes that such an array cannot hold.
    """
    texts: list[str] = []
    for element in elements:
        if isinstance(element, str):
            texts.append(element)
            continue
        if not isinstance(element, bytes):
            raise InvalidArgument(f"{field} must hold only strings.")
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            return _bytes_array(field, elements)
    array = np.empty(len(texts), object)
    for start in range(0, len(texts), PART):  # of Python's global lock, as for numbers
        array[start : start + PART] = texts[start : start + PART]
    return array


def _bytes_array(field: str, elements: Sequence[Any]) -> Array:
    """The array, of dtype S, for elements that are not all UTF-8. Raises InvalidArgument."""
    if not all(isinstance(element, str | bytes) for element in elements):
        raise InvalidArgument(f"{field} must hold only strings.")
    encoded = [e if isinstance(e, bytes) else e.encode() for e in elements]
    longest = max(map(len, encoded))
    if longest * len(encoded) > max(_LARGEST_PADDING, 4 * sum(map(len, encoded))):
        raise InvalidArgument(
            f"{field} has elements that are not UTF-8, and their lengths differ too much: ONNX "
            "Runtime takes such elements at the length of the longest one only."
        )
    for index, element in enumerate(encoded):
        if b"\0" in element:
            raise InvalidArgument(
                f"{field}: element {index} has a zero byte, at which ONNX Runtime ends it beside "
                "elements that are not UTF-8."
            )
    # ONNX Runtime reads up to a zero byte, even past the end of an element that has none.
    return np.array(encoded, f"S{longest + 1}")


def split_bytes(field: str, raw: Buffer, count: int) -> list[bytes]:
    """Up to `count` elements of raw BYTES contents; each is a uint32 length, then its bytes.

    Raises InvalidArgument, naming `field`, for more elements or an element that is cut off.
    """
    elements: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        if len(elements) == count:
            raise InvalidArgument(
                f"unexpected number of string elements {count + 1} for {field}, expecting {count}."
            )
        start = position + _LENGTH.size
        if start > end:
            raise InvalidArgument(
                f"incomplete string length indicator for {field}, expecting {_LENGTH.size} bytes "
                f"but only {end - position} bytes available."
            )
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > end:
            raise InvalidArgument(
                f"incomplete string data for {field}, whose element {len(elements)} has "
                f"{position - start} bytes but only {end - start} bytes available."
            )
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
