"""The classification extension: the largest values of an output, with their indices and labels.

Source: Triton's "Classification Extension".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.core.datatypes import BF16, BYTES, from_bfloat16
from service.core.errors import InvalidArgument
from service.core.tensors import Tensor


def classes(tensor: Tensor, count: int, labels: Sequence[str], batchable: bool) -> Tensor:
    """The `count` largest values of each row as a BYTES tensor of "value:index[:label]".

    Its shape is [N,k] for a batch of N and [k] without one, k being `count` or the number of
    classes, whichever is less. Of equal values the one with the smaller index comes first. Raises
    InvalidArgument for a tensor that does not hold numbers.
    """
    if tensor.datatype in (BYTES, "BOOL"):
        raise InvalidArgument(
            f"Output '{tensor.name}' is {tensor.datatype}: classification needs numbers."
        )
    values = from_bfloat16(tensor.array) if tensor.datatype == BF16 else tensor.array
    rows = values.reshape(len(values) if batchable else 1, -1)
    # Doubles, since an unsigned number has no negative to sort by.
    chosen = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    found = [
        [_class(row[index], index, labels) for index in indices]
        for row, indices in zip(rows.tolist(), chosen.tolist(), strict=True)
    ]
    array = np.array(found, dtype=object)
    return Tensor(tensor.name, BYTES, array if batchable else array[0])


def _class(value: float, index: int, labels: Sequence[str]) -> str:
    text = f"{value:f}:{index}" if isinstance(value, float) else f"{value}:{index}"
    return f"{text}:{labels[index]}" if index < len(labels) else text
