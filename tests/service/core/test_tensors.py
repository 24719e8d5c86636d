from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.datatypes import DTYPES, from_bfloat16, to_bfloat16
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
NUMPYS_OWN = sorted(set(DTYPES) - {"BF16", "BYTES"})


@given(
    st.sampled_from(NUMPYS_OWN).flatmap(
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
    for made in (
        from_bytes(spec, name, array.shape, to_bytes(tensor)),
        from_values(spec, name, array.shape, array.tolist()),
        from_values(spec, name, array.shape, to_values(tensor).tolist()),
    ):
        assert made.dtype == array.dtype
        assert np.array_equal(made, array)


@given(hnp.arrays(np.dtype(object), st.tuples(st.integers(1, 4), st.just(2)), elements=st.text()))
def test_strings_survive_bytes_and_values(array: np.ndarray) -> None:
    spec = TensorSpec("x", "BYTES", (-1, 2))
    try:
        raw = to_bytes(Tensor("x", "BYTES", array))
    except UnicodeEncodeError:
        return  # a lone surrogate is no text
    encoded = [text.encode() for text in array.ravel()]
    for made in (
        from_bytes(spec, "BYTES", array.shape, raw),
        from_values(spec, "BYTES", array.shape, array.tolist()),
        from_values(spec, "BYTES", array.shape, array.ravel().tolist()),
        from_values(spec, "BYTES", array.shape, encoded),
    ):
        assert made.tolist() == array.tolist()


@given(st.binary(max_size=40))
def test_no_raw_bytes_of_strings_fail_in_another_way(raw: bytes) -> None:
    spec = TensorSpec("x", "BYTES", (-1,))
    try:
        array = from_bytes(spec, "BYTES", [2], raw)
    except InvalidArgument:
        return
    assert to_bytes(Tensor("x", "BYTES", array)) == raw


@pytest.mark.parametrize(
    ("values", "named"),
    [([1], "strings"), ([None], "strings"), ([["a"]], "strings"), ([b"\xff"], "UTF-8"), ([], "0")],
)
def test_elements_that_are_no_strings_are_refused(values: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        from_values(TensorSpec("x", "BYTES", (-1,)), "BYTES", [1], values)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_rounded_to_the_nearest_even(value: float) -> None:
    exact = np.array([value], np.float32)
    made = from_bfloat16(to_bfloat16(exact))[0]
    bits = int(exact.view(np.uint32)[0])
    below = np.array([bits & 0xFFFF0000], np.uint32).view(np.float32)[0]
    above = np.array([(bits & 0xFFFF0000) + 0x10000], np.uint32).view(np.float32)[0]
    with np.errstate(over="ignore"):
        nearest = min(
            (below, above),
            key=lambda c: (
                abs(float(c) - value),
                int(np.array([c], np.float32).view(np.uint32)[0] >> 16) & 1,
            ),
        )
    # Past the largest one "above" is infinity, at no finite distance: IEEE 754 rounds to it.
    assert made == nearest or (np.isinf(made) and np.isinf(above))


def test_bfloat16_travels_as_bits_and_as_numbers() -> None:
    spec = TensorSpec("x", "BF16", (-1,))
    for made in (
        from_bytes(spec, "BF16", [2], b"\x80\x3f\x00\xc0"),
        from_values(spec, "BF16", [2], [1, -2.0]),
    ):
        tensor = Tensor("x", "BF16", made)
        assert to_values(tensor).tolist() == [1.0, -2.0]
        assert to_bytes(tensor) == b"\x80\x3f\x00\xc0"
    for raw in (b"\x80\x7f", b"\xc0\x7f"):  # infinity, NaN
        with pytest.raises(InvalidArgument, match="NaN"):
            from_bytes(spec, "BF16", [1], raw)
    with pytest.raises(InvalidArgument, match="NaN"):
        from_values(spec, "BF16", [1], [3.4e38])  # a float32, but past the largest BF16


def test_bytes_that_are_no_truth_values_are_refused() -> None:
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


def test_a_shape_that_does_not_follow_is_asked_for() -> None:
    with pytest.raises(InvalidArgument, match="header"):
        shape_of_raw(TensorSpec("x", "FP32", (-1, -1, -1)), 12)


def test_numbers_at_odd_addresses_are_aligned() -> None:
    raw = memoryview(b"{" + np.arange(3, dtype=np.float32).tobytes())[1:]
    array = from_bytes(TensorSpec("x", "FP32", (-1,)), "FP32", [3], raw)
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2]


def test_raw_bytes_are_not_copied() -> None:
    raw = bytes(range(8))
    array = from_bytes(IMAGE, "UINT8", [2, 2, 2], raw)
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "named"),
    [
        ("FP32", [1, 2, 2], bytes(4), "UINT8"),
        ("", [1, 2, 2], bytes(4), "unset"),
        ("UINT8", [1, 2], bytes(4), "shape"),
        ("UINT8", [1, 2, 3], bytes(6), "shape"),
        ("UINT8", [0, 2, 2], b"", "shape"),
        ("UINT8", [-1, 2, 2], bytes(4), "shape"),
        ("UINT8", [2, 2, 2], bytes(7), "7 bytes"),
        ("UINT8", [2**40, 2, 2], bytes(4), "bytes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    datatype: str, shape: list[int], raw: bytes, named: str
) -> None:
    with pytest.raises(InvalidArgument, match="'image'") as caught:
        from_bytes(IMAGE, datatype, shape, raw)
    assert named in caught.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(value: float) -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    with pytest.raises(InvalidArgument, match="NaN"):
        from_bytes(spec, "FP32", [1], np.array([value], np.float32).tobytes())
    with pytest.raises(InvalidArgument, match="NaN"):
        from_values(spec, "FP32", [1], [value])


@pytest.mark.parametrize(
    "values",
    [
        *([], [[1, 2], [3]], [[1], 2], [1, [2]], [[1], [[2]]]),
        *([256], [-1], [0.5], [float("nan")], ["1"], [None], [True], [1, False], [{}], [10**30]),
    ],
)
def test_values_that_would_be_bent_are_refused(values: Any) -> None:
    with pytest.raises(InvalidArgument, match="field"):
        numbers("field", values, np.dtype(np.uint8))


@pytest.mark.parametrize("values", [[2.0**63], [2**64], [-(2**63) - 1, 0], [2**63, -1]])
def test_integers_that_do_not_fit_64_bits_are_refused(values: Any) -> None:
    with pytest.raises(InvalidArgument, match="field"):
        numbers("field", values, np.dtype(np.int64))


def test_whole_floats_are_numbers_too() -> None:
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
def test_no_value_fails_in_another_way(value: Any) -> None:
    try:
        array = numbers("field", value, np.dtype(np.uint8))
    except InvalidArgument:
        return
    assert array.dtype == np.uint8
