from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.classification.fields import arrays_of, row_shape
from service.core.errors import InvalidArgument
from service.core.tensors import TensorSpec

IRIS = [TensorSpec(name, "FP32", (-1, 1)) for name in ("length", "width")]
PERSON = [TensorSpec("age", "INT64", (-1, 1)), TensorSpec("town", "BYTES", (-1, 1))]
VECTOR = [TensorSpec("x", "FP32", (-1, 4))]


@pytest.mark.parametrize(
    "value",
    [
        {"length": 5.1, "width": 3},
        {"length": [5.1], "width": [3]},
        {"length": [[5.1]], "width": 3},
        [{"width": 3, "length": 5.1}],
    ],
)
def test_fields_of_one_row(value: Any) -> None:
    length, width = arrays_of(IRIS, value)
    assert length.dtype == width.dtype == np.float32
    assert (length.tolist(), width.tolist()) == ([[np.float32(5.1)]], [[3.0]])


@pytest.mark.parametrize(
    "value",
    [
        {"age": [30, 40], "town": ["Bern", "Ulm"]},
        {"age": [[30], [40]], "town": [["Bern"], ["Ulm"]]},
        [{"age": 30, "town": "Bern"}, {"age": 40, "town": "Ulm"}],
    ],
)
def test_fields_of_several_rows_with_strings(value: Any) -> None:
    age, town = arrays_of(PERSON, value)
    assert age.tolist() == [[30], [40]]
    assert town.tolist() == [["Bern"], ["Ulm"]]


@pytest.mark.parametrize("value", [[1, 2, 3, 4], [[1, 2, 3, 4]], {"x": [1, 2, 3, 4]}])
def test_a_model_of_one_input_takes_its_contents(value: Any) -> None:
    (array,) = arrays_of(VECTOR, value)
    assert array.tolist() == [[1, 2, 3, 4]]


def test_rows_by_shape() -> None:
    for shape, value, expected in (
        ((-1,), 5, (1,)),
        ((-1,), [5, 6], (2,)),
        ((4,), [1, 2, 3, 4], (1, 4)),
        ((1, 4), [1, 2, 3, 4], (1, 4)),
        ((-1, -1), [1, 2, 3], (1, 3)),
        ((-1, 2, 2), [[1, 2], [3, 4]], (1, 2, 2)),
        ((-1, 2, 2), [[[1, 2], [3, 4]]] * 3, (3, 2, 2)),
        ((), 5, (1,)),
    ):
        (array,) = arrays_of([TensorSpec("x", "FP32", shape)], {"x": value})
        assert array.shape == expected, shape
    assert row_shape(TensorSpec("x", "FP32", (8, 4))) == (8, 4)


@pytest.mark.parametrize(
    ("specs", "value", "message"),
    [
        (IRIS, 5, "send a JSON object with the model's inputs as its fields: length, width"),
        (IRIS, [1, 2], "send a JSON object"),
        (IRIS, {"length": 1}, "the field width is missing"),
        (IRIS, {"length": 1, "width": 1, "colour": 1}, "'colour' is not an input of the model"),
        (IRIS, [{"length": 1, "width": 1}, {"length": 1}], "row 1: the field width is missing"),
        (IRIS, [{"length": 1, "width": 1}, 5], "row 1: send a JSON object"),
        (
            IRIS,
            {"length": [1, 2], "width": [1, 2, 3]},
            "numbers of rows: length 2, width 3",
        ),
        (IRIS, {"length": "5", "width": 1}, "'length' must hold only numbers"),
        (IRIS, {"length": None, "width": 1}, "'length' has null, NaN or infinite"),
        (IRIS, {"length": True, "width": 1}, "'length' must hold only numbers"),
        (IRIS, {"length": {}, "width": 1}, "'length' must hold only numbers"),
        (IRIS, {"length": [], "width": 1}, "'length' is empty"),
        (IRIS, {"length": 1e39, "width": 1}, "'length' has a number that is too large"),
        (PERSON, {"age": 1.5, "town": "Bern"}, "'age' has values with a fraction"),
        (PERSON, {"age": 1, "town": 2}, "'town' must hold only strings"),
        (VECTOR, [1, 2, 3], r"'x' has shape \[3\]; send one row of shape \[4\]"),
        (VECTOR, [[1, 2, 3, 4], [1, 2]], "rows of different lengths"),
        (VECTOR, [[1, 2, 3, 4], 5], "'x'"),
        (VECTOR, [], r"'x' has shape \[\]|is empty"),
    ],
)
def test_wrong_values_are_refused_by_name(
    specs: list[TensorSpec], value: Any, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        arrays_of(specs, value)


LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=2)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "age", "town", "z"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.sampled_from([VECTOR, PERSON, IRIS]), VALUES)
def test_any_json_is_arrays_of_one_length_or_refused(specs: list[TensorSpec], value: Any) -> None:
    try:
        arrays = arrays_of(specs, json.loads(json.dumps(value)))
    except InvalidArgument:
        return
    assert len({len(array) for array in arrays}) == 1
    for spec, array in zip(specs, arrays, strict=True):
        assert array.shape[1:] == row_shape(spec)
