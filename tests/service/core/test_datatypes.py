from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.datatypes import (
    DTYPES,
    from_bfloat16,
    join_bytes,
    one_element,
    split_bytes,
    strings,
    to_bfloat16,
)
from service.core.errors import InvalidArgument

TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # a lone surrogate has no UTF-8


@pytest.mark.parametrize(
    ("datatype", "size"),
    [
        *(("BOOL", 1), ("UINT8", 1), ("INT8", 1), ("UINT16", 2), ("INT16", 2), ("FP16", 2)),
        *(("BF16", 2), ("UINT32", 4), ("INT32", 4), ("FP32", 4), ("UINT64", 8), ("INT64", 8)),
        ("FP64", 8),
    ],
)
def test_elements_have_the_size_and_byte_order_of_the_protocol(datatype: str, size: int) -> None:
    dtype = DTYPES[datatype]
    assert dtype.itemsize == size
    assert dtype == dtype.newbyteorder("<")


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_rounded_to_the_nearest_even(value: float) -> None:
    exact = np.array([value], np.float32)
    rounded = from_bfloat16(to_bfloat16(exact))[0]
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
    assert rounded == nearest or (np.isinf(rounded) and np.isinf(above))


def test_double_just_above_a_tie_is_not_rounded_twice() -> None:
    # 1 + 2**-8 lies halfway between two bfloat16 values; float32 cannot hold the 2**-40 above it.
    above_the_tie = np.array([1 + 2**-8 + 2**-40, -(1 + 2**-8 + 2**-40), 1 + 2**-8])
    assert from_bfloat16(to_bfloat16(above_the_tie)).tolist() == [1 + 2**-7, -(1 + 2**-7), 1.0]


@given(st.lists(TEXT, max_size=5))
def test_strings_survive_their_wire_format(texts: list[str]) -> None:
    raw = join_bytes(strings("field", texts))
    elements = split_bytes("field", raw, len(texts))
    assert strings("field", elements).tolist() == texts
    assert raw == b"".join(one_element(text.encode()) for text in texts)


@given(st.binary(max_size=40), st.integers(0, 4))
def test_arbitrary_bytes_split_into_elements_or_are_rejected(raw: bytes, count: int) -> None:
    try:
        elements = split_bytes("field", memoryview(raw), count)
    except InvalidArgument:
        return
    assert len(elements) <= count
    assert b"".join(map(one_element, elements)) == raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (one_element(b"a") * 3, "unexpected number of string elements 3 for field, expecting 2"),
        (
            one_element(b"a") + b"\x01\x00",
            "incomplete string length indicator for field, expecting 4 bytes but only 2",
        ),
        (
            one_element(b"a") + b"\x02\x00\x00\x00b",
            "whose element 1 has 2 bytes but only 1 bytes available",
        ),
    ],
)
def test_wrong_framing_of_strings_is_rejected_at_its_element(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        split_bytes("field", raw, 2)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (["a", 1], "field must hold only strings"),
        ([None], "only strings"),
        ([b"\xff", None], "only strings"),
        (["a", b"\xff\0"], "element 1 has a zero byte"),
        ([b"\xff", *["a"] * 2000, "b" * 2000], "lengths differ too much"),
    ],
)
def test_elements_that_are_not_text_are_rejected(elements: list[Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        strings("field", elements)


def test_elements_that_are_not_utf8_are_an_array_of_bytes() -> None:
    array = strings("field", ["é", b"\xff\xfe", ""])
    assert array.dtype == "S3"  # each element ends with a zero byte
    assert array.tolist() == ["é".encode(), b"\xff\xfe", b""]


def test_bfloat16_of_nan_is_nan() -> None:
    nans = np.array([0x7FF00000_00000001, 0x7FFFFFFF_FFFFFFFF, 0xFFF80000_00000000], np.uint64)
    assert np.isnan(from_bfloat16(to_bfloat16(nans.view(np.float64)))).all()
    assert from_bfloat16(to_bfloat16(np.array([np.inf, -np.inf]))).tolist() == [np.inf, -np.inf]
