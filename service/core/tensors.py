"""Tensors of the Open Inference Protocol to and from numpy, with every check in one place.

Source: Open Inference Protocol (KServe V2), "Tensor Data Types" and "Tensor Data".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.core.datatypes import (
    BF16,
    BYTES,
    DTYPES,
    Array,
    Buffer,
    from_bfloat16,
    join_bytes,
    split_bytes,
    strings,
    to_bfloat16,
)
from service.core.errors import InvalidArgument

_EXACT_IN_DOUBLES = 2.0**53
_DEEPEST = 16  # lists in lists; no tensor that is served has more dimensions


class TensorSpec(NamedTuple):
    """What a model says of one of its inputs or outputs; -1 is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor as it travels; BF16 and BYTES are held as `datatypes` says."""

    name: str
    datatype: str
    array: Array


def check_spec(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> None:
    """Raise InvalidArgument unless a tensor of this datatype and shape suits the model's input."""
    if datatype != spec.datatype:
        raise InvalidArgument(
            f"Input '{spec.name}' has datatype {datatype or 'unset'}, "
            f"but the model takes {spec.datatype}."
        )
    if len(shape) == len(spec.shape):
        for got, want in zip(shape, spec.shape, strict=True):
            if got < 1 or got != want != -1:
                break
        else:
            return
    raise InvalidArgument(
        f"Input '{spec.name}' has shape {list(shape)}, but the model takes {list(spec.shape)}, "
        "where -1 is any number from 1 up."
    )


def shape_of_raw(spec: TensorSpec, size: int) -> list[int]:
    """The shape of an input of which only its size in bytes is known (one element for BYTES).

    Of several dimensions that may vary the first, the batch, is taken as 1. Raises InvalidArgument
    if the shape does not follow.
    """
    shape = list(spec.shape)
    if spec.datatype == BYTES:
        return [1 if length < 0 else length for length in shape]
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidArgument(
            f"Input '{spec.name}' is {list(spec.shape)}: its shape does not follow from its size; "
            "say it in a JSON header."
        )
    step = prod(length for length in shape if length >= 0) * DTYPES[spec.datatype].itemsize
    return [size // step if length < 0 else length for length in shape]


def from_bytes(spec: TensorSpec, datatype: str, shape: Sequence[int], raw: Buffer) -> Array:
    """View raw contents as an array of the given shape: no copy, read-only (but for BYTES).

    Raises InvalidArgument when datatype or shape are not the model's, when the number of bytes is
    not the shape's, or when a float is not finite.
    """
    check_spec(spec, datatype, shape)
    if spec.datatype == BYTES:
        field = f"Input '{spec.name}'"
        return _shaped(spec, shape, strings(field, split_bytes(field, raw, prod(shape))))
    dtype = DTYPES[spec.datatype]
    expected = prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidArgument(
            f"Input '{spec.name}' has {len(raw)} bytes of raw contents, but shape {list(shape)} "
            f"of {spec.datatype} is {expected} bytes."
        )
    array = np.frombuffer(raw, dtype).reshape(tuple(shape))
    if spec.datatype == "BOOL" and array.view(np.uint8).max() > 1:
        raise InvalidArgument(f"Input '{spec.name}' has bytes other than 0 and 1 for BOOL.")
    # Behind a JSON header numbers may begin anywhere, and kernels may load them aligned.
    return _finite(spec, array if array.flags.aligned else array.copy())


def from_values(spec: TensorSpec, datatype: str, shape: Sequence[int], values: Any) -> Array:
    """Make an array of values, nested or flat in row-major order, checked one by one.

    Raises InvalidArgument as `from_bytes` does, and for a value that is not of the datatype or
    does not fit into it: nothing is rounded or wrapped silently.
    """
    check_spec(spec, datatype, shape)
    field = f"Input '{spec.name}'"
    if spec.datatype == BYTES:
        return _shaped(spec, shape, strings(field, _flat(values, len(shape))))
    if spec.datatype == BF16:
        exact = _finite(spec, numbers(field, values, np.dtype(np.float64)))
        return _shaped(spec, shape, _finite(spec, to_bfloat16(exact)))
    return _finite(spec, _shaped(spec, shape, numbers(field, values, DTYPES[spec.datatype])))


def to_bytes(tensor: Tensor) -> bytes:
    """Raw contents: little-endian in row-major order, BYTES with the length before each."""
    return join_bytes(tensor.array) if tensor.datatype == BYTES else tensor.array.tobytes()


def to_values(tensor: Tensor) -> Array:
    """The values flat in row-major order, BF16 as float32."""
    flat = tensor.array.ravel()
    return from_bfloat16(flat) if tensor.datatype == BF16 else flat


def numbers(field: str, values: Any, dtype: np.dtype[Any]) -> Array:
    """Exact conversion of nested lists of numbers into an array of `dtype`.

    Raises InvalidArgument, naming `field`, where the lists are ragged or a value is not a number,
    is out of the range of the dtype, or has a fraction that an integer would lose.
    """
    flat, shape = _flatten(field, values)
    if dtype == np.uint8 and (octets := _octets(flat)) is not None:
        return np.frombuffer(octets, np.uint8).reshape(shape)
    kinds = set(map(type, flat))
    if list in kinds:
        raise InvalidArgument(f"{field} has rows of different lengths.")
    # Looked at first, since numpy makes room for the longest string at each place of the array.
    if not kinds <= ({bool} if dtype.kind == "b" else {int, float}):
        wanted = "true and false" if dtype.kind == "b" else "numbers"
        raise InvalidArgument(f"{field} must hold nothing but {wanted}.")
    try:
        array = np.array(flat)
        if array.dtype.kind == "f" and dtype.kind in "iu" and kinds == {int}:
            # numpy makes doubles of integers that straddle INT64 and UINT64, and loses digits.
            array = np.array(flat, dtype=object).astype(dtype)
    except OverflowError:
        raise InvalidArgument(f"{field} has a number that is too large.") from None
    if array.dtype.kind not in "biuf":
        raise InvalidArgument(f"{field} has a number that is too large.")
    array = array.reshape(shape)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" and np.any(np.abs(array) > _EXACT_IN_DOUBLES):
            raise InvalidArgument(f"{field} has a number that is too large to be exact.")
        # Written so that NaN fails it as well.
        if not (array.min() >= limits.min and array.max() <= limits.max):
            raise InvalidArgument(
                f"{field} has values from {array.min()} to {array.max()}, "
                f"outside of {limits.min} to {limits.max}."
            )
        if array.dtype.kind == "f" and np.any(array != np.trunc(array)):
            raise InvalidArgument(
                f"{field} has values with a fraction where whole numbers from {limits.min} to "
                f"{limits.max} are wanted; scale pixels in 0..1 by 255."
            )
    return array.astype(dtype, copy=False)


def _shaped(spec: TensorSpec, shape: Sequence[int], array: Array) -> Array:
    if array.size != prod(shape) or (array.ndim > 1 and array.shape != tuple(shape)):
        raise InvalidArgument(
            f"Input '{spec.name}' has data of shape {list(array.shape)} ({array.size} values), "
            f"but its shape says {list(shape)} ({prod(shape)} values)."
        )
    return array.reshape(tuple(shape))


def _flat(values: list[Any], rank: int) -> list[Any]:
    """The leaves of lists that are nested as deep as `rank` at the most."""
    for _ in range(rank - 1):
        if any(isinstance(value, list) for value in values):
            values = [
                leaf for value in values for leaf in (value if isinstance(value, list) else [value])
            ]
    return values


def _flatten(field: str, values: Any) -> tuple[list[Any], list[int]]:
    """The leaves of nested lists row by row, and the shape that they make.

    Raises InvalidArgument if the lists are ragged, empty or nested too deeply. Where the first of
    the leaves is no list and another is, that is left to be found.
    """
    flat = values if isinstance(values, list) else [values]
    shape = [len(flat)] if isinstance(values, list) else []
    while flat and type(flat[0]) is list:
        if set(map(type, flat)) != {list} or len(sizes := set(map(len, flat))) > 1:
            raise InvalidArgument(f"{field} has rows of different lengths.")
        if len(shape) == _DEEPEST:
            raise InvalidArgument(f"{field} is nested too deeply.")
        shape += sizes
        flat = list(chain.from_iterable(flat))
    if not flat:
        raise InvalidArgument(f"{field} is empty.")
    return flat, shape


def _octets(values: list[Any]) -> bytes | None:
    """The values as bytes if all are whole numbers from 0 to 255, else None.

    Looking at the types of 784 pixels would take three times as long.
    """
    try:
        octets = bytes(values)
    except (TypeError, ValueError):
        return None
    # It takes True for 1, which alone has an "e" as JSON, as False has.
    return None if b"e" in orjson.dumps(values) else octets


def _finite(spec: TensorSpec, array: Array) -> Array:
    floats = from_bfloat16(array) if spec.datatype == BF16 and array.dtype.kind == "u" else array
    if floats.dtype.kind == "f" and not np.isfinite(floats).all():
        raise InvalidArgument(f"Input '{spec.name}' has values that are NaN or infinite.")
    return array
