"""Tensors of the Open Inference Protocol to and from numpy, with every check in one place.

Source: Open Inference Protocol (KServe V2), "Tensor Data Types" and "Tensor Data".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.core.errors import InvalidArgument

Array = npt.NDArray[Any]

_EXACT_IN_DOUBLES = 2.0**53
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
}


class TensorSpec(NamedTuple):
    """What a model says of one of its inputs or outputs; -1 is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Tensor(NamedTuple):
    """A named array as it travels; the datatype follows from the array."""

    name: str
    array: Array


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype, e.g. float32 -> FP32."""
    return _NAMES[dtype.newbyteorder("<")]


_NAMES = {dtype.newbyteorder("<"): name for name, dtype in DTYPES.items()}


def check_spec(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> None:
    """Raise InvalidArgument unless a tensor of this datatype and shape suits the model's input."""
    if datatype != spec.datatype:
        raise InvalidArgument(
            f"Input '{spec.name}' has datatype {datatype or 'unset'}, "
            f"but the model takes {spec.datatype}."
        )
    if len(shape) != len(spec.shape) or any(
        got < 1 or want not in (-1, got) for got, want in zip(shape, spec.shape, strict=False)
    ):
        raise InvalidArgument(
            f"Input '{spec.name}' has shape {list(shape)}, but the model takes {list(spec.shape)}, "
            "where -1 is any number from 1 up."
        )


def from_bytes(spec: TensorSpec, datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """View raw contents as an array of the given shape: no copy, read-only.

    Raises InvalidArgument when datatype or shape are not the model's, when the number of bytes is
    not the shape's, or when a float is not finite.
    """
    check_spec(spec, datatype, shape)
    dtype = DTYPES[spec.datatype]
    expected = prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidArgument(
            f"Input '{spec.name}' has {len(raw)} bytes of raw contents, but shape {list(shape)} "
            f"of {spec.datatype} is {expected} bytes."
        )
    return _finite(spec, np.frombuffer(raw, dtype).reshape(tuple(shape)))


def from_values(spec: TensorSpec, datatype: str, shape: Sequence[int], values: Any) -> Array:
    """Make an array of values, nested or flat in row-major order, checked one by one.

    Raises InvalidArgument as `from_bytes` does, and for a value that is not of the datatype or
    does not fit into it: nothing is rounded or wrapped silently.
    """
    check_spec(spec, datatype, shape)
    array = numbers(f"Input '{spec.name}'", values, DTYPES[spec.datatype])
    if array.size != prod(shape) or (array.ndim > 1 and array.shape != tuple(shape)):
        raise InvalidArgument(
            f"Input '{spec.name}' has data of shape {list(array.shape)} ({array.size} values), "
            f"but its shape says {list(shape)} ({prod(shape)} values)."
        )
    return _finite(spec, array.reshape(tuple(shape)))


def numbers(field: str, values: Any, dtype: np.dtype[Any]) -> Array:
    """Exact conversion of nested lists of numbers into an array of `dtype`.

    Raises InvalidArgument, naming `field`, where the lists are ragged or a value is not a number,
    is out of the range of the dtype, or has a fraction that an integer would lose.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == "f" and dtype.kind in "iu" and dtype.itemsize == 8:
            # numpy makes doubles of integers that straddle INT64 and UINT64, and loses digits.
            exact = np.asarray(values, dtype=object)
            if all(type(value) is int for value in exact.flat):
                array = exact.astype(dtype)
    except ValueError:
        raise InvalidArgument(f"{field} has rows of different lengths.") from None
    except OverflowError:
        raise InvalidArgument(f"{field} has a number that is too large.") from None
    wanted = "true and false" if dtype.kind == "b" else "numbers"
    if array.size == 0:
        raise InvalidArgument(f"{field} is empty.")
    if (array.dtype.kind == "b") != (dtype.kind == "b") or array.dtype.kind not in "biuf":
        raise InvalidArgument(f"{field} must hold nothing but {wanted}.")
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


def _finite(spec: TensorSpec, array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidArgument(f"Input '{spec.name}' has values that are NaN or infinite.")
    return array
