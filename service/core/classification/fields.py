"""JSON to the inputs of a model of numbers and strings: fields by the name of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.core.datatypes import BF16, BYTES, Array, from_bfloat16
from service.core.errors import InvalidArgument, excerpt
from service.core.tensors import TensorSpec, from_values


def row_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one row of a tensor: without its first dimension, if that counts rows."""
    return spec.shape[1:] if spec.shape[:1] in ((-1,), (1,)) else spec.shape


def arrays_of(specs: Sequence[TensorSpec], value: Any) -> list[Array]:
    """One array [N, ...] for each input, from parsed JSON.

    The value is an object with a field for each input, a list of such objects, or for a model of
    one input the contents of that. A field holds one row or a list of N, and an input of one value
    per row takes that without a list of its own. Raises InvalidArgument, naming the field.
    """
    names = [spec.name for spec in specs]
    fields = value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for number, row in enumerate(value):
            _check_names(names, row, f"row {number}: ")
        fields = {name: [row[name] for row in value] for name in names}
    elif isinstance(value, list) and len(specs) == 1:
        fields = {names[0]: value}
    _check_names(names, fields, "")
    arrays = [_array(spec, fields[spec.name]) for spec in specs]
    counts = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(counts.values())) > 1:
        raise InvalidArgument(
            "The fields have different numbers of rows: "
            f"{excerpt(', '.join(f'{name} {count}' for name, count in counts.items()))}."
        )
    return arrays


def _check_names(names: Sequence[str], fields: Any, where: str) -> None:
    if not isinstance(fields, dict):
        raise InvalidArgument(
            f"{where}send a JSON object with the model's inputs as its fields: {', '.join(names)}."
        )
    for name in fields:
        if name not in names:
            raise InvalidArgument(
                f"{where}'{excerpt(name)}' is not an input of the model, which takes: "
                f"{', '.join(names)}."
            )
    if missing := [name for name in names if name not in fields]:
        raise InvalidArgument(f"{where}the field {', '.join(missing)} is missing.")


def _array(spec: TensorSpec, value: Any) -> Array:
    row, values = row_shape(spec), value
    shape: list[int] = []
    while isinstance(values, list) and values and len(shape) <= len(row):
        shape.append(len(values))
        values = values[0]
    if _fits(shape, row):
        full, value = [1, *shape], [value]
    elif row == (1,) and len(shape) < 2:
        full, value = [*(shape or [1]), 1], value if shape else [value]
    elif _fits(shape[1:], row):
        full = shape
    else:
        raise InvalidArgument(
            f"Input '{spec.name}' has shape {shape}; send one row of shape {list(row)}, or a list "
            "of them."
        )
    array = from_values(spec._replace(shape=(-1, *row)), spec.datatype, full, value)
    if spec.datatype != BYTES:
        floats = from_bfloat16(array) if spec.datatype == BF16 else array
        if not np.isfinite(floats).all():
            raise InvalidArgument(
                f"Input '{spec.name}' has null, NaN or infinite values; only the infer endpoint "
                "takes them."
            )
    return array


def _fits(shape: Sequence[int], row: Sequence[int]) -> bool:
    return len(shape) == len(row) and all(
        size in (n, size if n == -1 else n) for size, n in zip(shape, row, strict=True)
    )
