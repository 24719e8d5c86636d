from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.datatypes import DTYPES, Array
from service.core.errors import InvalidArgument
from service.core.request import InferResponse, OutputTensor, region_of
from service.core.tensors import Tensor, TensorSpec, from_bytes, from_values, to_bytes
from service.http import codec
from service.http.codec import ALL_BINARY, HEADER_LENGTH, BinaryOutputs, decode, encode
from service.http.message import HttpRequest

FIELDS = (
    "name datatype shape data parameters binary_data_size inputs outputs id classification "
    "shared_memory_region shared_memory_byte_size binary_data"
)
LIMIT = 2 * 1024 * 1024
NAMES = st.sampled_from(FIELDS.split())
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
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # no lone surrogates
IN_REGION = {
    "shared_memory_region": "r",
    "shared_memory_offset": 4,
    "shared_memory_byte_size": 2,
}
REGION = region_of("x", IN_REGION)


def request_of(body: bytes, length: str | None = None) -> HttpRequest:
    headers = {} if length is None else {HEADER_LENGTH: length}
    return HttpRequest(method="POST", path="/", header=headers.get, body=body)


def decoded(request: HttpRequest) -> Any:
    return decode(request, codec.header_length(request), "m", "1", LIMIT)


def binary_request(header: dict[str, Any], tail: bytes) -> HttpRequest:
    text = orjson.dumps(header)
    return request_of(text + tail, str(len(text)))


def tensor(size: int | None = None, **fields: Any) -> dict[str, Any]:
    body = {"name": "x", "datatype": "UINT8", "shape": [2]} | fields
    return body if size is None else body | {"parameters": {"binary_data_size": size}}


@given(BODIES, st.binary(max_size=20), st.none() | st.text(max_size=4) | st.just("fit"))
def test_json_of_any_form_is_decoded_or_rejected(
    body: Any, tail: bytes, length: str | None
) -> None:
    header = orjson.dumps(body)
    request = request_of(header + tail, str(len(header)) if length == "fit" else length)
    try:
        result, _ = decoded(request)
    except InvalidArgument:
        return
    raws = [tensor.raw for tensor in result.inputs if tensor.raw is not None]
    assert b"".join(raws) == (tail if length is not None else b"")
    for raw in raws:
        view = np.frombuffer(request.body, np.uint8)
        assert not len(raw) or np.shares_memory(np.frombuffer(raw, np.uint8), view)


@given(st.binary(max_size=60), st.none() | st.integers(0, 60).map(str))
def test_arbitrary_bytes_are_decoded_or_rejected(body: bytes, length: str | None) -> None:
    try:
        result, _ = decoded(request_of(body, length))
    except InvalidArgument:
        return
    assert result.inputs


@pytest.mark.parametrize("length", ["", "-1", "+1", " 1", "1_0", "1.0", "٣", "9" * 19, "99"])
def test_header_length_that_is_not_a_length_of_the_body_is_rejected(length: str) -> None:
    with pytest.raises(InvalidArgument, match="Inference-Header-Content-Length"):
        codec.header_length(request_of(b"{}", length))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "JSON object"),
        ({}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [1]}, r"inputs\[0\]: must be an object"),
        ({"inputs": [tensor(data=[1]), {}]}, r"inputs\[1\]\.name"),
        ({"inputs": [tensor(datatype=1)]}, r"inputs\[0\]\.datatype"),
        ({"inputs": [tensor(shape=[True])]}, r"inputs\[0\]\.shape"),
        ({"inputs": [tensor(shape="2")]}, r"inputs\[0\]\.shape"),
        ({"inputs": [tensor()]}, r"inputs\[0\]\.data"),
        ({"inputs": [tensor(data=[1], parameters=[1])]}, r"inputs\[0\]\.parameters"),
        ({"inputs": [tensor(2, data=[1])]}, r"inputs\[0\].* data both"),
        ({"inputs": [tensor(1)]}, "binary_data_size is 1, but 0 bytes"),
        ({"inputs": [tensor(data=[1])], "id": 1}, "id: must be a string"),
        ({"inputs": [tensor(data=[1])], "outputs": {}}, "outputs: must be a list"),
        ({"inputs": [tensor(data=[1])], "outputs": [{}]}, r"outputs\[0\]\.name"),
        (
            {
                "inputs": [tensor(data=[1])],
                "outputs": [{"name": "y", "parameters": {"binary_data": 1}}],
            },
            r"outputs\[0\]\.parameters\.binary_data: must be true or false",
        ),
    ],
)
def test_wrong_field_is_rejected_by_name(body: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        decoded(request_of(orjson.dumps(body)))


def test_data_behind_the_last_input_are_rejected() -> None:
    with pytest.raises(InvalidArgument, match="1 bytes more"):
        decoded(binary_request({"inputs": [tensor(2)]}, b"abc"))


def test_tensor_in_shared_memory_has_a_region_instead_of_data() -> None:
    result, _ = decoded(request_of(orjson.dumps({"inputs": [tensor(parameters=IN_REGION)]})))
    assert result.inputs[0].region == REGION
    assert result.inputs[0].raw is result.inputs[0].values is None
    both = tensor(parameters=IN_REGION | {"binary_data_size": 2})
    with pytest.raises(InvalidArgument, match="two places"):
        decoded(binary_request({"inputs": [both]}, b"ab"))


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


@given(st.lists(outputs(), min_size=1, max_size=3, unique_by=lambda output: output.name), st.data())
def test_tensors_of_every_datatype_survive_the_answer(
    tensors: list[OutputTensor], data: st.DataObject
) -> None:
    binary = BinaryOutputs(
        data.draw(st.booleans()), data.draw(st.dictionaries(st.sampled_from("abc"), st.booleans()))
    )
    request_id = data.draw(st.sampled_from(["", "7"]))
    response = encode(InferResponse("m", "1", request_id, tensors), binary)
    headers = dict(response.headers)
    length = int(headers.get(HEADER_LENGTH, len(response.body)))
    body = orjson.loads(response.body[:length])
    assert (body["model_name"], body["model_version"]) == ("m", "1")
    assert body.get("id", "") == request_id
    position = length
    for output, fields in zip(tensors, body["outputs"], strict=True):
        is_binary = binary.named.get(output.name, binary.default)
        shape = fields["shape"]
        spec = TensorSpec(fields["name"], fields["datatype"], tuple(shape))
        assert (spec.name, spec.datatype) == (output.name, output.datatype)
        array: Array
        if is_binary:
            size = fields["parameters"]["binary_data_size"]
            raw = response.body[position : position + size]
            array = from_bytes(spec, spec.datatype, shape, raw)
            position += size
            assert "data" not in fields
        else:
            array = from_values(spec, spec.datatype, shape, fields["data"])
            assert "parameters" not in fields
        assert array.dtype == output.array.dtype
        assert np.array_equal(array, output.array)
    assert position == len(response.body)
    assert (HEADER_LENGTH in headers) == (headers["content-type"] == "application/octet-stream")


def test_output_in_shared_memory_has_neither_data_nor_parameters() -> None:
    array = np.array([1, 2], np.uint8)
    output = OutputTensor("y", "UINT8", array, REGION)
    response = encode(InferResponse("m", "1", "", [output]), ALL_BINARY)
    assert orjson.loads(response.body) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [
            {
                "name": "y",
                "datatype": "UINT8",
                "shape": [2],
            }
        ],
    }


@given(outputs())
def test_binary_contents_decode_to_the_bytes_that_were_sent(output: OutputTensor) -> None:
    raw = to_bytes(Tensor(output.name, output.datatype, output.array))
    fields = {
        "name": output.name,
        "datatype": output.datatype,
        "shape": list(output.array.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    result, _ = decoded(binary_request({"inputs": [fields]}, raw))
    (received,) = result.inputs
    assert (received.name, received.datatype) == (output.name, output.datatype)
    assert (received.shape, bytes(received.raw)) == (fields["shape"], raw)


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(200, 200),
        np.arange(16_384, dtype=np.uint64) + np.uint64(2**63),
        np.array(["a", 'b"', "ü"] * 6_000, object),
    ],
    ids=["floats", "integers", "strings"],
)
def test_long_outputs_are_encoded_in_parts_to_the_same_json(array: Array) -> None:
    datatype = {"f": "FP32", "u": "UINT64", "O": "BYTES"}[array.dtype.kind]
    output = OutputTensor("y", datatype, array)
    body = encode(InferResponse("m", "1", "", [output]), BinaryOutputs()).body
    data = orjson.loads(body)["outputs"][0]["data"]
    assert np.array_equal(np.array(data, array.dtype), array.ravel())
    assert b'"data":[' in body


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_more_tensors_than_any_model_has_are_refused(field: str) -> None:
    body = {"inputs": [tensor(1)], "outputs": [], field: [{"name": "x"}] * 1025}
    with pytest.raises(InvalidArgument, match="more than 1024 tensors"):
        decoded(request_of(orjson.dumps(body)))


def test_repeated_header_is_read_with_its_own_data() -> None:
    tensors = [tensor(2, name=name) for name in "ab"]
    header = {
        "id": "7",
        "inputs": tensors,
        "outputs": [{"name": "x", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5},
    }
    for content in (b"abcd", b"efgh"):
        request = binary_request(header, content)
        size = codec.header_length(request)
        result, binary = decode(request, size, "m", content.decode(), LIMIT)
        raws = [bytes(received.raw or b"") for received in result.inputs]
        assert raws == [content[:2], content[2:]]
        assert (result.id, result.version) == ("7", content.decode())
        assert result.parameters == {"timeout": 5}
        assert result.outputs[0].name == "x"
        assert binary.named == {"x": True}
    for wrong in (b"abc", b"abcde"):
        with pytest.raises(InvalidArgument, match=r"binary_data_size|bytes more"):
            decoded(binary_request(header, wrong))


def test_remembered_headers_are_few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: dict[bytes, Any] = {}
    monkeypatch.setattr(codec, "_cache", remembered)
    for index in range(2 * codec._MAX_CACHED):
        long = tensor(1, name="b" * codec._MAX_CACHED_BYTES)
        for inputs in ([tensor(1)], [tensor(data=[1]), tensor(1)], [long]):
            size = sum("parameters" in fields for fields in inputs)
            decoded(binary_request({"id": str(index), "inputs": inputs}, b"x" * size))
    assert 0 < len(remembered) <= codec._MAX_CACHED
    assert all(len(header) <= codec._MAX_CACHED_BYTES for header in remembered)


@pytest.mark.parametrize(
    ("data", "is_decoded"),
    [
        ("[7, 255]", True),
        ("[[7], [255]]", False),
        ("[7, true]", False),
        ("[false, 7]", False),
        ("[7, 256]", False),
        ("[7, -1]", False),
        ("[7, 1.0]", False),
        ("[7]", False),
        ("[]", False),
    ],
)
def test_pixels_are_decoded_at_once_if_they_are_nothing_else(data: str, is_decoded: bool) -> None:
    text = '{"inputs": [{"data": %s, "name": "x", "datatype": "UINT8", "shape": [2]}]}'
    request, _ = decoded(request_of((text % data).encode()))
    (pixels,) = request.inputs
    assert pixels.raw == (bytes([7, 255]) if is_decoded else None)
    assert pixels.values == (None if is_decoded else orjson.loads(data))


def test_infinities_are_written_as_tritons_and_nothing_else_changes() -> None:
    bits = np.array([0x7F80, 0x3F80], np.uint16)
    outputs = [
        OutputTensor("null", "FP32", np.array([1.5, np.nan, -np.inf], np.float32)),
        OutputTensor("b", "FP64", np.array([[0.1], [np.inf]])),
        OutputTensor("c", "BF16", bits),
        OutputTensor("d", "BYTES", np.array(["null", "Infinity"], object)),
        OutputTensor("e", "INT64", np.array([1, 2])),
    ]
    body = encode(InferResponse("m", "1", "null", outputs), BinaryOutputs()).body
    texts = [part.partition(b"]")[0] for part in body.split(b'"data":[')[1:]]
    assert texts == [
        b"1.5,null,-Infinity",
        b"0.1,Infinity",
        b"Infinity,1.0",
        b'"null","Infinity"',
        b"1,2",
    ]
