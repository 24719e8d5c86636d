"""Parameters, classes, and the codecs' properties: whatever comes, one of our errors or a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument
from service.core.request import Region, classification_of, region_of, timeout_of
from service.core.tensors import Tensor
from service.core.top_classes import classes
from service.http.codec import (
    _KNOWN_BYTES,
    _MAX_KNOWN,
    HEADER_LENGTH,
    _known,
    decode,
    header_length,
)
from service.http.message import HttpRequest


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({}, None),
        ({"timeout": 0}, None),
        ({"timeout": 2_500_000, "mine": "x"}, 2.5),
        ({"priority": 3, "sequence_id": "s", "sequence_start": True}, None),
    ],
)
def test_a_timeout_is_in_microseconds(parameters: Any, seconds: float | None) -> None:
    assert timeout_of(parameters) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": True},
        {"timeout": "1"},
        {"priority": -1},
        {"sequence_id": 1.5},
        {"sequence_id": True},
        {"sequence_end": 1},
    ],
)
def test_parameters_of_the_wrong_type_are_named(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        timeout_of(wrong)


def test_a_region_needs_a_name_and_a_size() -> None:
    size, name = "shared_memory_byte_size", "shared_memory_region"
    assert region_of("x", {}) is None
    assert region_of("x", {name: "r", size: 5}) == Region("r", 0, 5)
    given = {name: "r", size: 5, "shared_memory_offset": 7}
    assert region_of("x", given) == Region("r", 7, 5)
    for wrong in ({name: 1, size: 5}, {name: "", size: 5}, {name: "r"}, {name: "r", size: 0}):
        with pytest.raises(InvalidArgument, match="x: shared_memory"):
            region_of("x", wrong)
    with pytest.raises(InvalidArgument, match="classification"):
        classification_of("x", {"classification": 1.0})


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
def test_the_best_classes_of_each_row(datatype: str, array: Any, expected: Any) -> None:
    kind = {"FP32": np.float32, "UINT8": np.uint8, "INT64": np.int64, "BF16": np.uint16}[datatype]
    tensor = Tensor("y", datatype, np.array(array, kind))
    found = classes(tensor, 2, ["a", "b"], batchable=True)
    assert (found.datatype, found.array.tolist()) == ("BYTES", expected)
    alone = classes(Tensor("y", datatype, np.array(array[0], kind)), 2, ["a", "b"], batchable=False)
    assert alone.array.tolist() == expected[0]


WORDS = (
    "name datatype shape data parameters binary_data_size inputs outputs id classification "
    "shared_memory_region shared_memory_byte_size binary_data"
)
NAMES = st.sampled_from(WORDS.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("x"), "datatype": st.just("UINT8"), "shape": st.just([1])},
    optional={
        "data": VALUES,
        "parameters": st.dictionaries(NAMES, VALUES, max_size=3),
    },
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | VALUES, max_size=3) | VALUES},
    optional={"outputs": VALUES | st.lists(TENSORS), "id": VALUES, "parameters": VALUES},
)


@given(BODIES, st.binary(max_size=20), st.none() | st.text(max_size=4) | st.just("fit"))
def test_no_body_fails_to_decode_in_another_way(body: Any, tail: bytes, length: str | None) -> None:
    head = orjson.dumps(body)
    said = str(len(head)) if length == "fit" else length
    request = HttpRequest({"inference-header-content-length": said}.get, head + tail)
    try:
        decoded, _ = decode(request, header_length(request), "m", "")
    except InvalidArgument:
        return
    raws = [tensor.raw for tensor in decoded.inputs if tensor.raw is not None]
    assert b"".join(raws) == (tail if said else b"")
    for raw in raws:
        view = np.frombuffer(request.body, np.uint8)
        assert not len(raw) or np.shares_memory(np.frombuffer(raw, np.uint8), view)


def binary_request(header: dict[str, Any], tail: bytes) -> HttpRequest:
    text = orjson.dumps(header)
    return HttpRequest({HEADER_LENGTH: str(len(text))}.get, text + tail)


def test_a_header_that_comes_again_is_read_with_the_data_that_come_with_it() -> None:
    tensors = [
        {"name": n, "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}
        for n in "ab"
    ]
    header = {
        "id": "7",
        "inputs": tensors,
        "outputs": [{"name": "x", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5},
    }
    for content in (b"abcd", b"efgh"):
        request = binary_request(header, content)
        decoded, binary = decode(request, header_length(request), "m", content.decode())
        raws = [bytes(tensor.raw or b"") for tensor in decoded.inputs]
        assert raws == [content[:2], content[2:]]
        assert (decoded.id, decoded.version, decoded.parameters) == (
            "7",
            content.decode(),
            {"timeout": 5},
        )
        assert decoded.outputs[0].name == "x"
        assert binary.named == {"x": True}
    for wrong in (b"abc", b"abcde"):
        request = binary_request(header, wrong)
        with pytest.raises(InvalidArgument, match=r"binary_data_size|bytes more"):
            decode(request, header_length(request), "m", "")


def test_no_more_headers_are_kept_than_a_few() -> None:
    for index in range(2 * _MAX_KNOWN):
        tensor = {"name": "a", "datatype": "UINT8", "shape": [1], "data": [1]}
        raw = {
            "name": "a",
            "datatype": "UINT8",
            "shape": [1],
            "parameters": {"binary_data_size": 1},
        }
        long = raw | {"name": "b" * _KNOWN_BYTES}
        for inputs in ([raw], [tensor, raw], [long]):
            size = sum("parameters" in each for each in inputs)
            request = binary_request({"id": str(index), "inputs": inputs}, b"x" * size)
            decode(request, header_length(request), "m", "")
    assert 0 < len(_known) <= _MAX_KNOWN
    assert all(len(header) <= _KNOWN_BYTES for header in _known)
