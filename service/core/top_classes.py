"""The classification extension: the largest values of an output with their indices and labels.

Source: Triton's "Classification Extension".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from service.core.datatypes import BF16, BYTES, Array, from_bfloat16
from service.core.errors import InvalidArgument
from service.core.tensors import Tensor


def classes(tensor: Tensor, count: int, labels: Sequence[str], batchable: bool) -> Tensor:
    """The `count` largest values of each row as a BYTES tensor of "value:index[:label]".

    The shape is [N,k] for a batch of N and [k] without a batch, where k is the smaller of `count`
    and the number of classes. Equal values are ordered by index. Raises InvalidArgument for a
    tensor that does not hold numbers.
    """
    if tensor.datatype in (BYTES, "BOOL"):
        raise InvalidArgument(
            "class result not available for output due to unsupported type "
            f"'{tensor.datatype}': output '{tensor.name}' has no numbers."
        )
    values = from_bfloat16(tensor.array) if tensor.datatype == BF16 else tensor.array
    rows = values.reshape(values.shape[0] if batchable else 1, prod(values.shape[batchable:]))
    top = _descending(rows)[:, :count]
    largest = np.take_along_axis(rows, top, axis=1)
    entries = [
        [_entry(value, index, labels) for value, index in zip(*row, strict=True)]
        for row in zip(largest.tolist(), top.tolist(), strict=True)
    ]
    array = np.array(entries, dtype=object).reshape(top.shape)
    return Tensor(tensor.name, BYTES, array if batchable else array[0])


def _descending(rows: Array) -> Array:
    """Indices that sort each row, largest first, NaN last, equal values by index."""
    if rows.dtype.kind == "f":
        return np.asarray(np.argsort(-rows, axis=1, kind="stable"))
    # Not every integer can be negated in its dtype: sort the reversed row, then reverse the result.
    last = rows.shape[1] - 1
    return np.asarray(last - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1])


def _entry(value: float, index: int, labels: Sequence[str]) -> str:
    text = f"{value:f}:{index}" if isinstance(value, float) else f"{value}:{index}"
    return f"{text}:{labels[index]}" if index < len(labels) else text
