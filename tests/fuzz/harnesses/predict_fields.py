"""JSON for a model of numbers and strings: what is accepted holds the values of the JSON.

The first byte chooses the inputs of the model.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from service.core.classification.fields import arrays_of, row_shape
from service.core.datatypes import DTYPES
from service.core.errors import InvalidArgument
from service.core.tensors import TensorSpec
from service.http.message import parse_json

_MAX_JSON_BYTES = 2 << 20
_MODELS = (
    [TensorSpec("x", "FP32", (-1, 4))],
    [TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "BYTES", (-1, 1))],
    [TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "BOOL", (1, 2))],
    [TensorSpec("x", "FP64", (-1, -1, 2))],
    [TensorSpec("x", "INT8", (3,))],
)
SEEDS = [
    b"\0[1, 2.5, -3, 4e2]",
    b'\0{"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
    b'\1{"a": 5.1, "b": "Bern"}',
    b'\1{"a": [5.1, 2], "b": ["Bern", "\\u00fc"]}',
    b'\1[{"a": 1, "b": ""}, {"b": "x", "a": [2]}]',
    b'\2{"a": [1, 2], "b": [[true, false], [false, true]]}',
    b"\3[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]",
    b"\4[1, -128, 127]",
    b'\4{"x": [128, null, 1e400], "y": {}}',
]
TOKENS = [b"[", b"]", b"{", b"}", b'"a":', b'"b":', b'"x":', b"true", b"null", b"1e39", b'""', b","]


def check(data: bytes) -> None:
    specs = _MODELS[data[0] % len(_MODELS)] if data else _MODELS[0]
    try:
        value = parse_json(data[1:], _MAX_JSON_BYTES)
        arrays = arrays_of(specs, value)
    except InvalidArgument:
        return
    rows = len(arrays[0])
    for spec, array in zip(specs, arrays, strict=True):
        assert len(array) == rows > 0
        row = row_shape(spec)
        assert array.ndim == 1 + len(row)
        assert all(n in (size, -1) for size, n in zip(array.shape[1:], row, strict=True))
        found, expected = array.ravel().tolist(), _leaves(json.loads(data[1:]), spec.name)
        if spec.datatype.startswith("FP"):
            expected = np.array(expected, DTYPES[spec.datatype]).tolist()
        assert found == expected, (found, expected)


def _leaves(value: Any, name: str) -> list[Any]:
    """The values of an input in row-major order."""
    if isinstance(value, list):
        return [leaf for each in value for leaf in _leaves(each, name)]
    return _leaves(value[name], name) if isinstance(value, dict) else [value]
