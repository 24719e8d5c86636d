"""Messages of ModelInfer to plain values and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.datatypes import BYTES, DTYPES
from service.core.errors import InvalidArgument
from service.core.request import InferResponse, OutputTensor, RequestedOutput, region_of
from service.core.tensors import TensorSpec, from_bytes, from_values
from service.grpc.codec import decode, encode, is_typed, parameters_of
from service.stubs.inference import inference_pb2 as pb

REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}


def set_parameters(fields: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(fields[name], kind, value)


def request(*raw: bytes, inputs: int = 1, **contents: list[Any]) -> pb.ModelInferRequest:
    """A request with FP32 inputs named 0, 1, ..., its contents raw, or typed in the first input."""
    message = pb.ModelInferRequest(model_name="m", model_version="2", id="mine")
    for index in range(inputs):
        message.inputs.add(name=str(index), datatype="FP32", shape=[1, 2])
    message.raw_input_contents.extend(raw)
    for field, values in contents.items():
        getattr(message.inputs[0].contents, field).extend(values)
    return message


def response(*outputs: OutputTensor) -> InferResponse:
    return InferResponse("m", "2", "mine", list(outputs))


# Requests.


def test_a_raw_request_is_decoded() -> None:
    decoded = decode(request(b"12345678", b"abcdefgh", inputs=2), deadline=7.5)
    assert (decoded.model, decoded.version, decoded.id) == ("m", "2", "mine")
    assert decoded.deadline == 7.5
    assert decoded.size == 0
    assert [tensor.raw for tensor in decoded.inputs] == [b"12345678", b"abcdefgh"]
    first = decoded.inputs[0]
    assert (first.name, first.datatype, list(first.shape)) == ("0", "FP32", [1, 2])
    assert (first.values, first.region) == (None, None)
    assert list(decoded.outputs) == []
    assert decoded.parameters == {}


def test_a_typed_request_is_decoded_with_its_size() -> None:
    message = request(fp32_contents=[1.5, 2.5])
    decoded = decode(message, None)
    assert is_typed(message)
    assert decoded.inputs[0].values == [1.5, 2.5]
    assert decoded.inputs[0].raw is None
    assert decoded.size == message.ByteSize() > 0


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("INT16", "int_contents", [-1, 2]),
        ("INT32", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-(2**40), 2]),
        ("UINT8", "uint_contents", [1, 255]),
        ("UINT16", "uint_contents", [1, 2]),
        ("UINT32", "uint_contents", [1, 2**31]),
        ("UINT64", "uint64_contents", [1, 2**63]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, -1.0]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_every_typed_datatype_has_its_field_both_ways(
    datatype: str, field: str, values: list[Any]
) -> None:
    message = request(**{field: values})
    message.inputs[0].datatype = datatype
    assert decode(message, None).inputs[0].values == values
    array = np.array(values, DTYPES.get(datatype, object))
    if datatype == BYTES:
        array = np.array([value.decode() for value in values])
    (output,) = encode(response(OutputTensor("o", datatype, array)), typed=True).outputs
    assert list(getattr(output.contents, field)) == values


def test_parameters_outputs_and_regions_are_decoded() -> None:
    message = request()
    set_parameters(message.parameters, {"timeout": 5})
    set_parameters(message.inputs[0].parameters, REGION)
    message.outputs.add(name="whole")
    set_parameters(message.outputs.add(name="top").parameters, {"classification": 3})
    set_parameters(message.outputs.add(name="shared").parameters, REGION)
    decoded = decode(message, None)
    assert decoded.parameters == {"timeout": 5}
    region = region_of("x", REGION)
    assert decoded.inputs[0].region == region
    assert (decoded.inputs[0].raw, decoded.inputs[0].values) == (None, None)
    assert list(decoded.outputs) == [
        RequestedOutput("whole"),
        RequestedOutput("top", 3),
        RequestedOutput("shared", 0, region),
    ]


def test_inputs_in_shared_memory_have_no_raw_contents() -> None:
    message = request(b"12345678", inputs=2)
    set_parameters(message.inputs[0].parameters, REGION)
    first, second = decode(message, None).inputs
    assert (first.raw, second.raw) == (None, b"12345678")


def typed_and_in_memory() -> pb.ModelInferRequest:
    message = request(fp32_contents=[1.0])
    set_parameters(message.inputs[0].parameters, REGION)
    return message


def of_datatype(datatype: str) -> pb.ModelInferRequest:
    message = request()
    message.inputs[0].datatype = datatype
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (request(b"1", fp32_contents=[1.0]), "when using raw_input_contents for '0' for model 'm'"),
        (request(b"1", b"2"), "has 2 entries"),
        (request(b"1", inputs=2), "for each of the 2 inputs"),
        (request(int_contents=[1]), "belong into fp32_contents alone"),
        (request(fp32_contents=[1.0], int_contents=[1]), "belong into fp32_contents alone"),
        (of_datatype("FP16"), "'FP16' has no typed contents"),
        (of_datatype("nonsense"), "'nonsense' has no typed contents"),
        (typed_and_in_memory(), "two places for its data"),
    ],
)
def test_a_contradictory_request_is_rejected(message: pb.ModelInferRequest, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        decode(message, None)


def test_parameters_without_a_value_are_dropped() -> None:
    fields = request().parameters
    fields["empty"].SetInParent()
    fields["zero"].int64_param = 0
    fields["text"].string_param = ""
    fields["flag"].bool_param = False
    assert parameters_of(fields) == {"zero": 0, "text": "", "flag": False}


# Responses.


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.booleans())
def test_a_response_carries_its_values_raw_or_typed(values: list[float], typed: bool) -> None:
    array = np.array([values], np.float32)
    message = encode(response(OutputTensor("o", "FP32", array)), typed)
    (output,) = message.outputs
    assert (message.model_name, message.model_version, message.id) == ("m", "2", "mine")
    assert (output.name, output.datatype, output.shape) == ("o", "FP32", [1, len(values)])
    if typed:
        assert list(output.contents.fp32_contents) == values
        assert list(message.raw_output_contents) == []
    else:
        assert not output.HasField("contents")
        assert list(message.raw_output_contents) == [array.tobytes()]


def test_responses_of_one_shape_have_their_own_ids_warnings_and_contents() -> None:
    for number, (request_id, warning) in enumerate([("", ""), ("mine", "odd"), ("", "")]):
        array = np.array([number], np.uint8)
        output = OutputTensor("o", "UINT8", array)
        message = encode(InferResponse("m", "2", request_id, [output], warning), False)
        assert (message.id, list(message.raw_output_contents)) == (request_id, [bytes([number])])
        assert message.parameters["warning"].string_param == warning
    assert encode(InferResponse("n", "2", "", [output]), False).model_name == "n"
    assert encode(InferResponse("m", "2", "", []), False) == pb.ModelInferResponse(
        model_name="m", model_version="2"
    )


def test_a_typed_response_with_fp16_is_raw() -> None:
    outputs = (
        OutputTensor("a", "FP32", np.ones(1, np.float32)),
        OutputTensor("b", "FP16", np.ones(1, np.float16)),
    )
    message = encode(response(*outputs), typed=True)
    assert [len(raw) for raw in message.raw_output_contents] == [4, 2]
    assert not any(output.HasField("contents") for output in message.outputs)


@pytest.mark.parametrize("typed", [False, True])
def test_an_output_in_shared_memory_is_named_and_not_sent(typed: bool) -> None:
    array = np.ones(2, np.float32)
    outputs = (
        OutputTensor("shared", "FP32", array, region_of("x", REGION)),
        OutputTensor("sent", "FP32", array),
    )
    message = encode(response(*outputs), typed)
    assert parameters_of(message.outputs[0].parameters) == REGION
    assert not message.outputs[0].HasField("contents")
    if typed:
        assert list(message.outputs[1].contents.fp32_contents) == [1.0, 1.0]
    else:
        assert list(message.raw_output_contents) == [b"", array.tobytes()]


# Round trips.

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # no lone surrogates


@st.composite
def tensors(draw: st.DrawFn) -> OutputTensor:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = st.tuples(st.integers(1, 3), st.just(2))
    if datatype == BYTES:
        array = draw(hnp.arrays(np.dtype(object), shape, elements=TEXT))
    elif datatype == "BF16":  # bits of finite numbers: the exponent is not all ones
        array = draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, 0x7F7F)))
    else:
        finite = {"allow_nan": False, "allow_infinity": False}
        elements = finite if datatype[:2] == "FP" else None
        array = draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))
    return OutputTensor(draw(st.sampled_from("abc")), datatype, array)


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
def test_tensors_of_every_datatype_survive_a_response(
    outputs: list[OutputTensor], typed: bool
) -> None:
    """The tensors of a response, sent back as inputs, are the arrays that they came from."""
    message = encode(response(*outputs), typed)
    travels_raw = not typed or any(output.datatype in ("FP16", "BF16") for output in outputs)
    assert bool(message.raw_output_contents) == travels_raw
    again = pb.ModelInferRequest(raw_input_contents=message.raw_output_contents)
    for output in message.outputs:
        again.inputs.add().ParseFromString(output.SerializeToString())
    assert is_typed(again) != travels_raw
    for sent, received in zip(outputs, decode(again, None).inputs, strict=True):
        spec = TensorSpec(sent.name, sent.datatype, sent.array.shape)
        datatype, shape = received.datatype, received.shape
        if received.raw is not None:
            array = from_bytes(spec, datatype, shape, received.raw)
        else:
            array = from_values(spec, datatype, shape, received.values)
        assert array.dtype == sent.array.dtype
        assert np.array_equal(array, sent.array)


@given(st.binary(max_size=80))
def test_arbitrary_messages_are_decoded_or_rejected(content: bytes) -> None:
    try:
        message = pb.ModelInferRequest.FromString(content)
    except DecodeError:
        return
    try:
        assert len(decode(message, None).inputs) == len(message.inputs)
    except InvalidArgument:
        return


def test_a_parameter_of_the_wrong_type_is_rejected_by_its_tensor() -> None:
    message = request(b"12345678")
    message.outputs.add(name="y").parameters["classification"].bool_param = True
    with pytest.raises(InvalidArgument, match=r"Output 'y'.*classification"):
        decode(message, None)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [0.5, -1.0] * 10_000),
        ("INT64", list(range(20_000))),
        ("BYTES", [b"a", b"b"] * 9000),
    ],
)
def test_long_typed_contents_are_converted_in_parts(datatype: str, values: list[Any]) -> None:
    field = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}[
        datatype
    ]
    contents = pb.InferTensorContents(**{field: values})
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=datatype, shape=[len(values)], contents=contents)
    decoded = decode(message, None).inputs[0]
    spec = TensorSpec("x", datatype, (-1,))
    array = from_values(spec, datatype, [len(values)], decoded.values)
    as_text = [value.decode() for value in values] if datatype == "BYTES" else values
    assert array.tolist() == as_text
    answer = encode(InferResponse("m", "1", "", [OutputTensor("y", datatype, array)]), True)
    assert list(getattr(answer.outputs[0].contents, field)) == values
