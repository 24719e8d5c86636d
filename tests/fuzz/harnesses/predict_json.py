"""JSON to POST /predict. What is accepted is what Python's json and numpy make of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from service.core.digits import pixels_from_values
from service.core.errors import InvalidArgument
from service.http.digits import input_of_json

_MAX_JSON_BYTES = 2 << 20
_ROW = json.dumps([*range(28)])
SEEDS = [
    json.dumps([0] * 784).encode(),
    f'{{"image": [{",".join([_ROW] * 28)}]}}'.encode(),
    f"[[{','.join([_ROW] * 28)}]]".encode(),
    b'{"image": [[0, 255], [1.0, 2]]}',
    b"[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]",
    b'{"image": [true, null, "", {}, 1e400, -1, 256, 18446744073709551616]}',
    b"[[1, 2], [3]]",
    b'{"image": "data:image/png;base64,iVBORw0KGgo="}',
    b"",
]
TOKENS = [
    b"[",
    b"]",
    b'{"image":',
    b"true",
    b"null",
    b"1e5",
    b"255",
    b"256",
    b"-0",
    b"1.5",
    b'""',
    b'"data:image/gif;base64,AAAA"',
]


def check(data: bytes) -> None:
    try:
        array, picture = input_of_json(data, _MAX_JSON_BYTES)
        if picture is not None:  # a data URL
            assert callable(picture)
            picture()
    except InvalidArgument as error:
        assert str(error).startswith(("image:", "The body")), error
        array = None
    expected = _reference(data)
    if array is None:
        assert expected is None, data
        return
    assert array.dtype == np.uint8
    assert expected is not None
    assert array.shape == expected.shape
    assert (array == expected).all()
    try:
        pixels = pixels_from_values(array)
    except InvalidArgument:
        return
    assert pixels.shape == (array.size // 784, 28, 28)


def _reference(data: bytes) -> Any:
    """The array that these bytes mean, or None if they mean no array of pixels."""
    try:
        values = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    values = values.get("image") if isinstance(values, dict) else values
    if not isinstance(values, list):
        return None
    try:
        array = np.array(values, dtype=object)
    except ValueError:  # ragged
        return None
    leaves = array.ravel().tolist()
    if not leaves or array.ndim > 64 or any(type(leaf) not in (int, float) for leaf in leaves):
        return None
    if any(leaf != leaf or not 0 <= leaf <= 255 or leaf != int(leaf) for leaf in leaves):
        return None
    return array.astype(np.uint8)


def _refuse(name: str) -> None:
    raise ValueError(name)
