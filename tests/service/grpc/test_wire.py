from __future__ import annotations

import re

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument, RequestTooLarge
from service.grpc.wire import check, shape_of
from service.stubs.inference import inference_pb2 as pb

SHAPE = shape_of(pb.ModelInferRequest)
LIMIT = 2 * 1024 * 1024


def message(**fields: object) -> bytes:
    return pb.ModelInferRequest(model_name="m", **fields).SerializeToString()  # type: ignore[arg-type]


def tensor(**fields: object) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", **fields)  # type: ignore[arg-type]


def test_raw_tensors_do_not_count() -> None:
    small = check(message(inputs=[tensor()]), SHAPE, LIMIT)
    content = message(inputs=[tensor()], raw_input_contents=[bytes(8_000_000)] * 2)
    assert small < check(content, SHAPE, LIMIT) < small + 20


def test_typed_values_count_and_are_limited() -> None:
    values = pb.InferTensorContents(fp32_contents=[0.5] * 1000)
    content = message(inputs=[tensor(contents=values)])
    assert check(content, SHAPE, len(content)) == len(content)
    with pytest.raises(RequestTooLarge, match=re.escape("max_json_bytes")):
        check(content, SHAPE, len(content) - 1)


@pytest.mark.parametrize(
    "content",
    [
        b"\x32\x00" * 5000,  # outputs
        b"\x2a\x00" * 5000,  # inputs
        b"\x3a\x00" * 5000,  # raw_input_contents
        b"\x1a\x00" * 5000,  # id, again and again
        b"".join(b"\x22\x06\x0a\x04%04x" % number for number in range(5000)),  # parameters
        b"\x2a\xa0\x9c\x01" + b"\x22\x02\x0a\x00" * 5000,  # parameters of an input
        b"\xf8\x07\x00" * 5000,  # an unknown number
        b"\xfb\x07\xfc\x07" * 2500,  # unknown groups
        b"\x35\x00\x00\x00\x00" * 5000,  # unknown four bytes
    ],
    ids=range(9),
)
def test_a_message_of_many_fields_is_refused(content: bytes) -> None:
    pb.ModelInferRequest.FromString(content)  # well-formed
    with pytest.raises(InvalidArgument, match="more than 2048 fields"):
        check(content, SHAPE, LIMIT)


def test_many_strings_in_one_tensor_are_not_fields() -> None:
    strings = pb.InferTensorContents(bytes_contents=[b"a"] * 10_000)
    content = message(inputs=[tensor(contents=strings)])
    assert check(content, SHAPE, LIMIT) == len(content)


@given(st.binary(max_size=60))
def test_any_bytes_are_measured(content: bytes) -> None:
    assert 0 <= check(content, SHAPE, LIMIT) <= len(content)


@given(
    st.lists(st.sampled_from([b"\x3a\x02ab", b"\x1a\x00", b"\x2a", b"\x00", b"\x80", b"\xfb\x07"]))
)
def test_what_protobuf_can_parse_is_measured_field_by_field(parts: list[bytes]) -> None:
    content = b"".join(parts)
    try:
        request = pb.ModelInferRequest.FromString(content)
    except DecodeError:
        return
    raw = sum(len(raw) for raw in request.raw_input_contents)
    assert check(content, SHAPE, LIMIT) == len(content) - raw


@given(
    st.builds(
        pb.ModelInferRequest,
        id=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
        inputs=st.lists(
            st.builds(
                pb.ModelInferRequest.InferInputTensor,
                shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
            ),
            max_size=3,
        ),
    )
)
def test_every_message_is_measured_without_its_raw_contents(request: pb.ModelInferRequest) -> None:
    raw = sum(len(content) for content in request.raw_input_contents)
    assert check(request.SerializeToString(), SHAPE, LIMIT) == request.ByteSize() - raw
