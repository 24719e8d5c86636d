from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.errors import InvalidArgument
from service.core.tensors import Tensor
from service.core.top_classes import classes


@pytest.mark.parametrize(
    ("datatype", "array", "expected"),
    [
        ("FP32", [[1.0, 3.0, 2.0]], [["3.000000:1:b", "2.000000:2"]]),
        ("UINT8", [[1, 0, 255]], [["255:2", "1:0:a"]]),
        ("INT64", [[-(2**60), 2**60, 0]], [[f"{2**60}:1:b", "0:2"]]),
        ("FP32", [[1.0, 1.0, 1.0]], [["1.000000:0:a", "1.000000:1:b"]]),
        ("BF16", [[0x3F80, 0x4000, 0]], [["2.000000:1:b", "1.000000:0:a"]]),
    ],
)
def test_top_classes_of_each_row(datatype: str, array: Any, expected: Any) -> None:
    dtype = {"FP32": np.float32, "UINT8": np.uint8, "INT64": np.int64, "BF16": np.uint16}[datatype]
    tensor = Tensor("y", datatype, np.array(array, dtype))
    top = classes(tensor, 2, ["a", "b"], batchable=True)
    assert (top.datatype, top.array.tolist()) == ("BYTES", expected)
    row = Tensor("y", datatype, np.array(array[0], dtype))
    assert classes(row, 2, ["a", "b"], batchable=False).array.tolist() == expected[0]


INTEGERS = st.sampled_from([np.int8, np.uint8, np.int64, np.uint64])


@given(INTEGERS.flatmap(lambda dtype: hnp.arrays(dtype, st.tuples(st.just(2), st.integers(1, 6)))))
def test_integers_are_sorted_over_their_whole_range(array: np.ndarray) -> None:
    top = classes(Tensor("y", "INT64", array), array.shape[1], [], batchable=True)
    for row, texts in zip(array.tolist(), top.array.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        assert texts == [f"{row[index]}:{index}" for index in order]


def test_nan_is_smaller_than_every_number() -> None:
    row = np.array([[np.nan, -np.inf, 1.0]], np.float32)
    top = classes(Tensor("y", "FP32", row), 3, [], batchable=True)
    assert top.array.tolist() == [["1.000000:2", "-inf:1", "nan:0"]]


def test_count_above_the_number_of_classes_returns_all_of_them() -> None:
    top = classes(Tensor("y", "UINT8", np.array([[1, 2]], np.uint8)), 100, [], batchable=True)
    assert top.array.tolist() == [["2:1", "1:0"]]


def test_dimensions_behind_the_batch_are_one_row_of_classes() -> None:
    array = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    top = classes(Tensor("y", "UINT8", array), 1, [], batchable=True)
    assert top.array.tolist() == [["3:3"], ["7:3"]]


@pytest.mark.parametrize(
    ("datatype", "array"),
    [("BYTES", np.array([["a"]], object)), ("BOOL", np.array([[True]]))],
)
def test_output_without_numbers_is_rejected(datatype: str, array: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match=f"unsupported type '{datatype}': output 'y'"):
        classes(Tensor("y", datatype, array), 1, [], batchable=True)


@pytest.mark.parametrize(
    ("shape", "batchable", "expected"),
    [((0, 9), True, (0, 3)), ((2, 0), True, (2, 0)), ((0,), False, (0,)), ((2, 9), False, (3,))],
)
def test_outputs_without_elements_have_no_classes(
    shape: tuple[int, ...], batchable: bool, expected: tuple[int, ...]
) -> None:
    tensor = Tensor("y", "FP32", np.zeros(shape, np.float32))
    assert classes(tensor, 3, (), batchable).array.shape == expected
