from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.datatypes import DTYPES, one_element
from service.core.errors import InvalidArgument
from service.core.tensors import (
    Tensor,
    TensorSpec,
    from_bytes,
    from_values,
    numbers,
    shape_of_raw,
    to_bytes,
    to_values,
)

IMAGE = TensorSpec("image", "UINT8", (-1, 2, 2))
NUMPY_DATATYPES = sorted(set(DTYPES) - {"BF16", "BYTES"})


@given(
    st.sampled_from(NUMPY_DATATYPES).flatmap(
        lambda name: hnp.arrays(
            DTYPES[name],
            st.tuples(st.integers(1, 4), st.just(2)),
            elements={"allow_nan": False, "allow_infinity": False} if name[:2] == "FP" else None,
        ).map(lambda array: (name, array))
    )
)
def test_every_datatype_survives_bytes_and_values(case: tuple[str, np.ndarray]) -> None:
    name, array = case
    spec = TensorSpec("x", name, (-1, 2))
    tensor = Tensor("x", name, array)
    for decoded in (
        from_bytes(spec, name, array.shape, to_bytes(tensor)),
        from_values(spec, name, array.shape, array.tolist()),
        from_values(spec, name, array.shape, to_values(tensor).tolist()),
    ):
        assert decoded.dtype == array.dtype
        assert np.array_equal(decoded, array)


@given(hnp.arrays(np.dtype(object), st.tuples(st.integers(1, 4), st.just(2)), elements=st.text()))
def test_strings_survive_bytes_and_values(array: np.ndarray) -> None:
    spec = TensorSpec("x", "BYTES", (-1, 2))
    try:
        raw = to_bytes(Tensor("x", "BYTES", array))
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    encoded = [text.encode() for text in array.ravel()]
    for decoded in (
        from_bytes(spec, "BYTES", array.shape, raw),
        from_values(spec, "BYTES", array.shape, array.tolist()),
        from_values(spec, "BYTES", array.shape, array.ravel().tolist()),
        from_values(spec, "BYTES", array.shape, encoded),
    ):
        assert decoded.tolist() == array.tolist()


@given(st.binary(max_size=40))
def test_arbitrary_raw_strings_are_decoded_or_rejected(raw: bytes) -> None:
    spec = TensorSpec("x", "BYTES", (-1,))
    try:
        array = from_bytes(spec, "BYTES", [2], raw)
    except InvalidArgument:
        return
    assert to_bytes(Tensor("x", "BYTES", array)) == raw


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "strings"),
        ([None], "strings"),
        ([[1]], "strings"),
        ([b"\xff\0"], "UTF-8"),
        ([], "0"),
    ],
)
def test_elements_that_are_not_strings_are_rejected(values: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_values(TensorSpec("x", "BYTES", (-1,)), "BYTES", [1], values)


@pytest.mark.parametrize("nested", [[1, 2, 3, 4], [[1, 2, 3, 4]], [[[1], [2]], [[3], [4]]]])
def test_data_may_be_nested_otherwise_than_its_shape(nested: Any) -> None:
    array = from_values(TensorSpec("x", "INT32", (-1, 2)), "INT32", [2, 2], nested)
    assert array.tolist() == [[1, 2], [3, 4]]
    deep: Any = "a"
    for _ in range(50):
        deep = [deep]
    array = from_values(TensorSpec("x", "BYTES", (-1,)), "BYTES", [1], deep)
    assert array.tolist() == ["a"]


def test_bfloat16_travels_as_bits_and_as_numbers() -> None:
    spec = TensorSpec("x", "BF16", (-1,))
    for decoded in (
        from_bytes(spec, "BF16", [2], b"\x80\x3f\x00\xc0"),
        from_values(spec, "BF16", [2], [1, -2.0]),
    ):
        tensor = Tensor("x", "BF16", decoded)
        assert to_values(tensor).tolist() == [1.0, -2.0]
        assert to_bytes(tensor) == b"\x80\x3f\x00\xc0"
    special = from_values(spec, "BF16", [4], [np.inf, -np.inf, np.nan, None])
    assert to_bytes(Tensor("x", "BF16", special)) == b"\x80\x7f\x80\xff\xc0\x7f\xc0\x7f"
    with pytest.raises(InvalidArgument, match="infinite"):
        from_values(spec, "BF16", [1], [3.4e38])  # a float32, but past the largest BF16


def test_bool_bytes_other_than_0_and_1_are_rejected() -> None:
    with pytest.raises(InvalidArgument, match="BOOL"):
        from_bytes(TensorSpec("x", "BOOL", (-1,)), "BOOL", [2], b"\x01\x02")


@pytest.mark.parametrize(
    ("spec", "size", "shape"),
    [
        (TensorSpec("x", "UINT8", (-1, 2, 2)), 12, [3, 2, 2]),
        (TensorSpec("x", "FP32", (-1, -1)), 12, [1, 3]),
        (TensorSpec("x", "FP32", (2, 2)), 16, [2, 2]),
        (TensorSpec("x", "BYTES", (-1, 1)), 5, [1, 1]),
    ],
)
def test_the_shape_of_raw_contents_follows_from_their_size(
    spec: TensorSpec, size: int, shape: list[int]
) -> None:
    assert shape_of_raw(spec, size) == shape


def test_ambiguous_shape_of_raw_contents_must_be_stated() -> None:
    with pytest.raises(InvalidArgument, match="header"):
        shape_of_raw(TensorSpec("x", "FP32", (-1, -1, -1)), 12)


def test_numbers_at_unaligned_addresses_are_copied_to_aligned_ones() -> None:
    raw = memoryview(b"{" + np.arange(3, dtype=np.float32).tobytes())[1:]
    array = from_bytes(TensorSpec("x", "FP32", (-1,)), "FP32", [3], raw)
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2]


def test_raw_bytes_are_not_copied() -> None:
    raw = bytes(range(8))
    array = from_bytes(IMAGE, "UINT8", [2, 2, 2], raw)
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "message"),
    [
        ("FP32", [1, 2, 2], bytes(4), "UINT8"),
        ("", [1, 2, 2], bytes(4), "unset"),
        ("UINT8", [1, 2], bytes(4), "shape"),
        ("UINT8", [1, 2, 3], bytes(6), "shape"),
        ("UINT8", [1, 0, 2], b"", "shape"),
        ("UINT8", [2**40, 0, 2], b"", "shape"),
        ("UINT8", [-1, 2, 2], bytes(4), "shape"),
        ("UINT8", [2, 2, 2], bytes(7), "Expected 8, got 7; its shape is [2,2,2] of UINT8."),
        ("UINT8", [2**40, 2, 2], bytes(4), "input byte size mismatch for input"),
    ],
)
def test_tensor_that_does_not_fit_is_rejected_by_name(
    datatype: str, shape: list[int], raw: bytes, message: str
) -> None:
    with pytest.raises(InvalidArgument, match="'image'") as caught:
        from_bytes(IMAGE, datatype, shape, raw)
    assert message in caught.value.message


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_may_be_nan_or_infinite_and_null_is_nan(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1,))
    values = [np.nan, np.inf, -np.inf, 1]
    raw = np.array(values, DTYPES[datatype]).tobytes()
    for array in (
        from_bytes(spec, datatype, [4], raw),
        from_values(spec, datatype, [4], values),
        from_values(spec, datatype, [4], [None, *values[1:]]),
    ):
        assert array.dtype == DTYPES[datatype]
        assert np.array_equal(array, np.array(values, DTYPES[datatype]), equal_nan=True)


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_without_elements_has_the_shape_that_it_states(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 2, -1))
    for array in (
        from_bytes(spec, datatype, [3, 2, 0], b""),
        from_values(spec, datatype, [3, 2, 0], []),
        from_values(spec, datatype, [3, 2, 0], [[[], []]] * 3),
    ):
        assert array.shape == (3, 2, 0)
        assert array.dtype == DTYPES[datatype]
    for values in ([1], [[[1]]], ["a"]):
        with pytest.raises(InvalidArgument, match="'x'"):
            from_values(spec, datatype, [3, 2, 0], values)
    with pytest.raises(InvalidArgument, match="1048576"):
        from_bytes(spec, datatype, [2**30, 2, 0], b"")


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    spec = TensorSpec("x", "FP32", (-1,), has_rank=False)
    for shape in ([], [2], [1, 2, 1], [0, 3]):
        raw = bytes(4 * int(np.prod(shape)))
        assert from_bytes(spec, "FP32", shape, raw).shape == tuple(shape)
    for shape in ([-1], [1] * 65):
        with pytest.raises(InvalidArgument, match="any shape of up to 64 dimensions"):
            from_bytes(spec, "FP32", shape, bytes(4))


def test_the_size_of_raw_contents_decides_no_size_beside_a_zero() -> None:
    assert shape_of_raw(TensorSpec("x", "FP32", (-1, 0)), 0) == [0, 0]


@pytest.mark.parametrize(
    "values",
    [
        *([], [[1, 2], [3]], [[1], 2], [1, [2]], [[1], [[2]]]),
        *([256], [-1], [0.5], [float("nan")], ["1"], [None], [True], [1, False], [{}], [10**30]),
    ],
)
def test_values_that_uint8_cannot_hold_are_rejected(values: Any) -> None:
    with pytest.raises(InvalidArgument, match="field"):
        numbers("field", values, np.dtype(np.uint8))


@pytest.mark.parametrize("values", [[2.0**63], [2**64], [-(2**63) - 1, 0], [2**63, -1]])
def test_integers_beyond_64_bits_are_rejected(values: Any) -> None:
    with pytest.raises(InvalidArgument, match="field"):
        numbers("field", values, np.dtype(np.int64))


@pytest.mark.parametrize("value", [2**53, 2**53 + 1, -(2**53) - 1, 2.0**53])
def test_an_integer_beside_a_float_is_exact_or_rejected(value: float) -> None:
    """Beside a float numpy makes it a double, and 2^53 + 1 becomes 2^53."""
    with pytest.raises(InvalidArgument, match="exact"):
        numbers("field", [value, 1.0], np.dtype(np.int64))
    assert numbers("field", [2**53 - 1, 1.0], np.dtype(np.int64)).tolist() == [2**53 - 1, 1]
    assert numbers("field", [2**53 + 1, 1], np.dtype(np.int64)).tolist() == [2**53 + 1, 1]


def test_a_float_out_of_range_is_refused_without_a_warning() -> None:
    for datatype, value in (("FP32", 1e39), ("FP16", 70000), ("BF16", 1e39)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InvalidArgument, match="infinite"):
                from_values(TensorSpec("x", datatype, (-1,)), datatype, [1], [value])


def test_whole_floats_become_integers() -> None:
    assert numbers("field", [0.0, 255.0], np.dtype(np.uint8)).tolist() == [0, 255]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        ),
        max_leaves=12,
    )
)
def test_arbitrary_values_are_converted_or_rejected(value: Any) -> None:
    try:
        array = numbers("field", value, np.dtype(np.uint8))
    except InvalidArgument:
        return
    assert array.dtype == np.uint8


def test_texts_that_are_not_utf8_are_bytes_however_they_arrive() -> None:
    spec, texts = TensorSpec("x", "BYTES", (-1,)), [b"a", b"\xff"]
    raw = b"".join(map(one_element, texts))
    for array in (from_bytes(spec, "BYTES", [2], raw), from_values(spec, "BYTES", [2], texts)):
        assert array.dtype.kind == "S"
        assert array.tolist() == texts
