from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.datatypes import DTYPES
from service.core.errors import InvalidArgument
from service.core.request import InferResponse, OutputTensor, RequestedOutput, region_of
from service.core.tensors import TensorSpec, from_bytes, from_values
from service.grpc.codec import decode, encode, is_typed, parameters_of
from service.stubs.inference import inference_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # no lone surrogates
IN_REGION = {
    "shared_memory_region": "r",
    "shared_memory_offset": 4,
    "shared_memory_byte_size": 2,
}
REGION = region_of("x", IN_REGION)


def request_of(*names: str, raw: list[bytes] | None = None) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=raw or [])
    for name in names:
        request.inputs.add(name=name, datatype="UINT8", shape=[2])
    return request


def put_in_region(tensor: Any) -> None:
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_offset"].int64_param = 4
    tensor.parameters["shared_memory_byte_size"].int64_param = 2


def test_raw_contents_belong_to_the_inputs_in_order() -> None:
    request = request_of("a", "b", raw=[b"ab", b"cd"])
    request.id, request.model_version = "7", "3"
    request.parameters["timeout"].int64_param = 5
    decoded = decode(request, 9.0)
    assert [(tensor.name, tensor.raw) for tensor in decoded.inputs] == [("a", b"ab"), ("b", b"cd")]
    assert (decoded.model, decoded.version, decoded.id) == ("m", "3", "7")
    assert (decoded.parameters, decoded.deadline) == ({"timeout": 5}, 9.0)


def test_input_in_shared_memory_takes_no_raw_contents() -> None:
    request = request_of("a", "b", "c", raw=[b"ab", b"cd"])
    put_in_region(request.inputs[1])
    decoded = decode(request, None)
    assert [tensor.raw for tensor in decoded.inputs] == [b"ab", None, b"cd"]
    assert decoded.inputs[1].region == REGION


@pytest.mark.parametrize("raw", [[b"ab"], [b"ab", b"cd", b"ef"]])
def test_wrong_number_of_raw_contents_is_rejected(raw: list[bytes]) -> None:
    with pytest.raises(InvalidArgument, match=f"has {len(raw)} entries.* 2 inputs"):
        decode(request_of("a", "b", raw=raw), None)


def test_typed_and_raw_contents_together_are_rejected() -> None:
    request = request_of("a", raw=[b"ab"])
    request.inputs[0].contents.uint_contents.extend([1, 2])
    with pytest.raises(InvalidArgument, match="raw_input_contents"):
        decode(request, None)


def test_typed_contents_in_shared_memory_are_rejected() -> None:
    request = request_of("a")
    request.inputs[0].contents.uint_contents.extend([1, 2])
    put_in_region(request.inputs[0])
    with pytest.raises(InvalidArgument, match="two places"):
        decode(request, None)


def test_values_in_the_field_of_another_datatype_are_rejected() -> None:
    request = request_of("a")
    request.inputs[0].contents.int_contents.append(1)
    with pytest.raises(InvalidArgument, match="uint_contents alone"):
        decode(request, None)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "", "UINT9"])
def test_datatype_without_typed_contents_is_rejected(datatype: str) -> None:
    request = request_of("a")
    request.inputs[0].datatype = datatype
    with pytest.raises(InvalidArgument, match="raw_input_contents"):
        decode(request, None)


def test_requested_outputs_have_their_parameters() -> None:
    request = request_of("a", raw=[b"ab"])
    request.outputs.add(name="x")
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    put_in_region(request.outputs.add(name="z"))
    assert decode(request, None).outputs == [
        RequestedOutput("x"),
        RequestedOutput("y", 3),
        RequestedOutput("z", 0, REGION),
    ]


def test_parameter_of_the_wrong_type_is_rejected_by_its_tensor() -> None:
    request = request_of("a", raw=[b"ab"])
    request.outputs.add(name="y").parameters["classification"].bool_param = True
    with pytest.raises(InvalidArgument, match=r"Output 'y'.*classification"):
        decode(request, None)


def test_parameter_without_a_value_is_ignored() -> None:
    request = request_of("a")
    request.parameters["empty"].SetInParent()
    request.parameters["set"].bool_param = False
    assert parameters_of(request.parameters) == {"set": False}


@given(st.binary(max_size=80))
def test_arbitrary_messages_are_decoded_or_rejected(content: bytes) -> None:
    try:
        request = pb.ModelInferRequest.FromString(content)
    except DecodeError:
        return
    try:
        assert len(decode(request, None).inputs) == len(request.inputs)
    except InvalidArgument:
        return


@st.composite
def outputs(draw: st.DrawFn) -> OutputTensor:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = st.tuples(st.integers(1, 3), st.just(2))
    if datatype == "BYTES":
        array = draw(hnp.arrays(np.dtype(object), shape, elements=TEXT))
    elif datatype == "BF16":  # bits of finite numbers: the exponent is not all ones
        array = draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, 0x7F7F)))
    else:
        finite = {"allow_nan": False, "allow_infinity": False}
        elements = finite if datatype[:2] == "FP" else None
        array = draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))
    return OutputTensor(draw(st.sampled_from("abc")), datatype, array)


@given(st.lists(outputs(), min_size=1, max_size=3), st.booleans())
def test_tensors_of_every_datatype_survive_the_answer(
    tensors: list[OutputTensor], typed: bool
) -> None:
    """An answer's tensors, sent back as inputs, are decoded to the arrays that they came from."""
    response = encode(InferResponse("m", "1", "7", tensors), typed)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
    travels_raw = not typed or any(tensor.datatype in ("FP16", "BF16") for tensor in tensors)
    assert bool(response.raw_output_contents) == travels_raw
    request = pb.ModelInferRequest(raw_input_contents=response.raw_output_contents)
    for output in response.outputs:
        request.inputs.add().ParseFromString(output.SerializeToString())
    assert is_typed(request) != travels_raw
    for sent, received in zip(tensors, decode(request, None).inputs, strict=True):
        spec = TensorSpec(sent.name, sent.datatype, sent.array.shape)
        datatype, shape = received.datatype, received.shape
        if received.raw is not None:
            array = from_bytes(spec, datatype, shape, received.raw)
        else:
            array = from_values(spec, datatype, shape, received.values)
        assert array.dtype == sent.array.dtype
        assert np.array_equal(array, sent.array)


def test_output_in_shared_memory_has_an_empty_raw_entry() -> None:
    array = np.array([1, 2], np.uint8)
    tensors = [
        OutputTensor("x", "UINT8", array, REGION),
        OutputTensor("y", "UINT8", array),
    ]
    response = encode(InferResponse("m", "1", "", tensors), typed=False)
    assert list(response.raw_output_contents) == [b"", b"\x01\x02"]
    assert parameters_of(response.outputs[0].parameters) == IN_REGION
