from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.errors import InvalidArgument
from service.core.tensors import (
    DTYPES,
    TensorSpec,
    datatype_of,
    from_bytes,
    from_values,
    numbers,
)

IMAGE = TensorSpec("image", "UINT8", (-1, 2, 2))


@given(
    st.sampled_from(sorted(DTYPES)).flatmap(
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
    assert datatype_of(array.dtype) == name
    for made in (
        from_bytes(spec, name, array.shape, array.tobytes()),
        from_values(spec, name, array.shape, array.tolist()),
        from_values(spec, name, array.shape, array.ravel().tolist()),
    ):
        assert made.dtype == array.dtype
        assert np.array_equal(made, array)


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
    [[], [[1, 2], [3]], [256], [-1], [0.5], [float("nan")], ["1"], [None], [True], [{}], [10**30]],
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
