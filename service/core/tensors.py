"""Converts tensors of the Open Inference Protocol to and from numpy, and checks them.

Source: Open Inference Protocol (KServe V2), "Tensor Data Types" and "Tensor Data".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple, Protocol

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
from service.core.errors import EXCERPT, InvalidArgument, excerpt
from service.core.off_loop import PART

_FIRST_INEXACT = 2.0**53  # as a double it may stand for 2^53 + 1 as well
# numpy's kind of an array -> the types of its numbers in JSON, unless they are int and float.
_KINDS: dict[str, set[type]] = {"b": {bool}, "f": {int, float, type(None)}}
_MAX_DIMENSIONS = _MAX_NESTING = 64  # of numpy's arrays, and so of lists within lists
_MOST_WITHOUT_ELEMENTS = 1 << 20


class TensorSpec(NamedTuple):
    """One input or output as the model declares it; -1 is a size that may vary.

    Without `has_rank`, any shape may come, of any number of dimensions; `shape` is then (-1,).
    A request may leave out an input that `is_optional`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    has_rank: bool = True
    is_optional: bool = False


class Tensor(NamedTuple):
    """A tensor with its name; `datatypes` says how `array` holds BF16 and BYTES."""

    name: str
    datatype: str
    array: Array


# The errors of the next functions begin with the words that Triton's clients look for.
def check_spec(spec: TensorSpec, datatype: str, shape: Sequence[int], model: str = "") -> None:
    """Raise InvalidArgument unless the input of `model` takes this datatype and shape."""
    if datatype != spec.datatype:
        raise InvalidArgument(
            f"inference input '{spec.name}' data-type is '{excerpt(datatype or 'unset')}', but "
            f"model '{model}' expects '{spec.datatype}'."
        )
    if len(shape) == len(spec.shape):
        for size, declared in zip(shape, spec.shape, strict=True):
            if size < 1 or size != declared != -1:
                break
        else:
            return
    _check_rare(spec, shape, model)


def _check_rare(spec: TensorSpec, shape: Sequence[int], model: str) -> None:
    """Raise InvalidArgument unless the input takes a shape with zeros or of an open rank."""
    declared = spec.shape if spec.has_rank else (-1,) * len(shape)
    fits = len(shape) == len(declared) and len(shape) <= _MAX_DIMENSIONS
    if not fits or any(
        size < 0 or size != length != -1 for size, length in zip(shape, declared, strict=True)
    ):
        expected = (
            _excerpt_of(spec.shape)
            if spec.has_rank
            else f"any shape of up to {_MAX_DIMENSIONS} dimensions"
        )
        any_size = "; -1 stands for any size" if spec.has_rank and -1 in spec.shape else ""
        raise InvalidArgument(
            f"unexpected shape for input '{spec.name}'{_for(model)}. Expected {expected}, got "
            f"{_excerpt_of(shape)}{any_size}."
        )
    # Nothing in the request is as large as the output that a model may make of [10**9, 0].
    if 0 in shape and prod(size for size in shape if size) > _MOST_WITHOUT_ELEMENTS:
        raise InvalidArgument(
            f"Input '{spec.name}' has shape {_excerpt_of(shape)} without elements, whose other "
            f"sizes may multiply to {_MOST_WITHOUT_ELEMENTS} at most."
        )


def shape_of_raw(spec: TensorSpec, size: int) -> list[int]:
    """Derive the shape of an input from its size in bytes; BYTES has one element.

    If several dimensions may vary, the first one, the batch, becomes 1. Raises InvalidArgument if
    that still leaves more than one unknown.
    """
    shape = list(spec.shape)
    if spec.datatype == BYTES:
        return [1 if length < 0 else length for length in shape]
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidArgument(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more "
            f"than one variable-sized dimension in {_excerpt_of(spec.shape)}; state it in a JSON "
            "header."
        )
    step = prod(length for length in shape if length >= 0) * DTYPES[spec.datatype].itemsize
    return [size // step if step and length < 0 else max(length, 0) for length in shape]


def from_bytes(
    spec: TensorSpec, datatype: str, shape: Sequence[int], raw: Buffer, model: str = ""
) -> Array:
    """View raw contents as a read-only array of `shape`, without a copy; BYTES are copied.

    Raises InvalidArgument if the datatype or shape does not match the model's, or if the number of
    bytes does not match the shape. Floats may be NaN or infinite.
    """
    check_spec(spec, datatype, shape, model)
    if spec.datatype == BYTES:
        field, count = f"inference input '{spec.name}'{_for(model)}", prod(shape)
        elements = split_bytes(field, raw, count)
        if len(elements) < count:
            raise InvalidArgument(
                f"expected {count} string elements for {field}, got {len(elements)}."
            )
        return strings(f"Input '{spec.name}'", elements).reshape(tuple(shape))
    dtype = DTYPES[spec.datatype]
    expected = prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidArgument(
            f"input byte size mismatch for input '{spec.name}'{_for(model)}. Expected {expected}, "
            f"got {len(raw)}; its shape is {_excerpt_of(shape)} of {spec.datatype}."
        )
    array: Array = np.ndarray(tuple(shape), dtype, raw)
    if spec.datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidArgument(f"Input '{spec.name}' has bytes other than 0 and 1 for BOOL.")
    # Behind a JSON header numbers start at any address, but kernels may need aligned loads.
    return array if dtype.itemsize == 1 or array.flags.aligned else array.copy()


def from_values(
    spec: TensorSpec, datatype: str, shape: Sequence[int], values: Any, model: str = ""
) -> Array:
    """Convert values in row-major order, flat or nested in any regular way, to a `shape`d array.

    Raises InvalidArgument as `from_bytes` does, and for a value of another type or out of range:
    integers are never rounded or wrapped. Floats are rounded to the precision of the datatype; None
    is NaN, which JSON lacks.
    """
    check_spec(spec, datatype, shape, model)
    field = f"Input '{spec.name}'"
    if spec.datatype == BYTES:
        return _shaped(spec, shape, strings(field, _flat(values)))
    if 0 in shape and not _flat(values):
        return np.empty(tuple(shape), DTYPES[spec.datatype])
    if spec.datatype == BF16:
        exact = numbers(field, values, np.dtype(np.float64))
        bits = to_bfloat16(exact)
        _check_range(field, exact, from_bfloat16(bits))
        return _shaped(spec, shape, bits)
    return _shaped(spec, shape, numbers(field, values, DTYPES[spec.datatype]))


class Contents(Protocol):
    """A tensor, as `to_bytes` sees it."""

    @property
    def datatype(self) -> str: ...

    @property
    def array(self) -> Array: ...


def to_bytes(tensor: Contents) -> bytes:
    """Raw contents: little-endian, in row-major order; each BYTES element follows its length."""
    return join_bytes(tensor.array) if tensor.datatype == BYTES else tensor.array.tobytes()


def to_values(tensor: Tensor) -> Array:
    """The values flat in row-major order, BF16 as float32."""
    flat = tensor.array.ravel()
    return from_bfloat16(flat) if tensor.datatype == BF16 else flat


def numbers(field: str, values: Any, dtype: np.dtype[Any], may_hold_booleans: bool = True) -> Array:
    """Convert nested lists of numbers to an array of `dtype`.

    Looking for booleans among 784 pixels takes 6 us; `may_hold_booleans` says whether to. Raises
    InvalidArgument, naming `field`, if the lists are ragged, or if a value is not a number, is out
    of range for `dtype`, or has a fraction that an integer would lose.
    """
    flat, shape = _flatten(field, values)
    if len(flat) <= PART:
        return _flat_numbers(field, flat, dtype, may_hold_booleans).reshape(shape)
    array = np.empty(len(flat), dtype)
    for start in range(0, len(flat), PART):
        part = flat[start : start + PART]
        array[start : start + PART] = _flat_numbers(field, part, dtype, may_hold_booleans)
    return array.reshape(shape)


def _flat_numbers(
    field: str, flat: Sequence[Any], dtype: np.dtype[Any], may_hold_booleans: bool
) -> Array:
    if dtype == np.uint8 and (pixels := octets(flat, may_hold_booleans)) is not None:
        return np.frombuffer(pixels, np.uint8)
    kinds = set(map(type, flat))
    if list in kinds:
        raise InvalidArgument(f"{field} has rows of different lengths.")
    # Types come before the array: numpy would give every element the room of the longest string.
    if not kinds <= _KINDS.get(dtype.kind, {int, float}):
        allowed = "true and false" if dtype.kind == "b" else "numbers"
        raise InvalidArgument(f"{field} must hold only {allowed}.")
    try:
        array = np.array(flat, np.float64 if type(None) in kinds else None)
        if array.dtype.kind == "f" and dtype.kind in "iu" and kinds == {int}:
            # numpy turns integers that straddle INT64 and UINT64 into doubles and loses digits.
            array = np.array(flat, dtype=object).astype(dtype)
    except OverflowError:
        raise InvalidArgument(f"{field} has a number that is too large.") from None
    if array.dtype.kind not in "biuf":
        raise InvalidArgument(f"{field} has a number that is too large.")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" and np.any(np.abs(array) >= _FIRST_INEXACT):
            raise InvalidArgument(f"{field} has a number that is too large to be exact.")
        # NaN fails this form of the comparison as well.
        if not (array.min() >= limits.min and array.max() <= limits.max):
            raise InvalidArgument(
                f"{field} has values from {array.min()} to {array.max()}, "
                f"outside {limits.min} to {limits.max}."
            )
        if array.dtype.kind == "f" and np.any(array != np.trunc(array)):
            raise InvalidArgument(
                f"{field} has values with a fraction, but takes whole numbers from {limits.min} "
                f"to {limits.max}; multiply pixels in 0..1 by 255."
            )
    # A float out of range becomes infinite; numpy's warning would be a line of the log.
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.kind == "f":
        _check_range(field, array, converted)
    return converted


def _check_range(field: str, exact: Array, converted: Array) -> None:
    """Raise InvalidArgument if a finite number has become infinite."""
    infinite = np.isinf(converted)
    if infinite.any() and not np.isinf(exact[infinite]).all():
        raise InvalidArgument(f"{field} has a number that is too large: it would become infinite.")


def _shaped(spec: TensorSpec, shape: Sequence[int], array: Array) -> Array:
    if array.size != prod(shape):  # nested otherwise is the same data, as for Triton
        raise InvalidArgument(
            f"Shape does not match true shape of 'data' field: input '{spec.name}' has "
            f"{array.size} values, but its shape {_excerpt_of(shape)} has {prod(shape)}."
        )
    return array.reshape(tuple(shape))


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    """The leaves of nested lists; lists below _MAX_NESTING stay among them."""
    for _ in range(_MAX_NESTING):
        if not any(isinstance(value, list) for value in values):
            break
        values = [
            leaf for value in values for leaf in (value if isinstance(value, list) else [value])
        ]
    return values


def _flatten(field: str, values: Any) -> tuple[Sequence[Any], list[int]]:
    """The leaves of nested lists in row-major order, and the shape of the nesting.

    Raises InvalidArgument if the lists are ragged, empty or nested too deeply. It stops at the
    first leaf, so a list beside that leaf stays among the leaves for the caller to reject.
    """
    # gRPC's lists are sequences of another type.
    is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    flat = values if is_list else [values]
    shape = [len(flat)] if is_list else []
    while flat and type(flat[0]) is list:
        if set(map(type, flat)) != {list} or len(sizes := set(map(len, flat))) > 1:
            raise InvalidArgument(f"{field} has rows of different lengths.")
        if len(shape) == _MAX_NESTING:
            raise InvalidArgument(f"{field} is nested too deeply.")
        shape += sizes
        flat = list(chain.from_iterable(flat))
    if not flat:
        raise InvalidArgument(f"{field} is empty.")
    return flat, shape


def octets(values: Sequence[Any], may_hold_booleans: bool) -> bytes | None:
    """The values as bytes if all are whole numbers from 0 to 255, else None.

    Checking the types of 784 pixels would take three times as long.
    """
    try:
        found = bytes(values)
    except (TypeError, ValueError):
        return None
    # bytes() takes True for 1. In the JSON of such a list only true and false contain an "e".
    return None if may_hold_booleans and b"e" in orjson.dumps(values) else found


def _for(model: str) -> str:
    return f" for model '{model}'" if model else ""


def _excerpt_of(shape: Sequence[int]) -> str:
    """What an error quotes of a shape, as Triton writes it; it may have a million dimensions."""
    return excerpt(f"[{','.join(map(str, shape[:EXCERPT]))}]")
