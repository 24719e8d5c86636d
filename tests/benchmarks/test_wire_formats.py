"""Every wire format: requests are decoded, answers are built."""

from __future__ import annotations

import base64
import io
import json
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tritonclient.grpc import service_pb2

from benchmarks.wire_formats import HEADER_LENGTH, WIRES, read_grpc, read_inference, read_plain

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
ROWS = st.integers(1, 4).map(
    lambda rows: np.random.default_rng(rows).dirichlet(np.ones(10), rows).astype(np.float32)
)


def test_requests_carry_the_images():
    assert WIRES["raw"].encode(IMAGES).content == IMAGES.tobytes()
    picture = Image.open(io.BytesIO(WIRES["png"].encode(IMAGES).content))
    assert np.array_equal(np.asarray(picture), IMAGES[0])
    fields = json.loads(WIRES["json"].encode(IMAGES).content)
    assert fields["inputs"][0]["shape"] == [3, 28, 28]
    assert fields["inputs"][0]["data"] == IMAGES.ravel().tolist()
    text = json.loads(WIRES["base64"].encode(IMAGES).content)["image"]
    assert base64.b64decode(text) == IMAGES.tobytes()


def test_binary_request_is_a_header_of_the_stated_length_and_then_the_tensor():
    body = WIRES["binary"].encode(IMAGES)
    length = int(dict(body.headers)[HEADER_LENGTH])
    header = json.loads(body.content[:length])
    assert header["inputs"][0]["parameters"]["binary_data_size"] == IMAGES.nbytes
    assert body.content[length:] == IMAGES.tobytes()


def test_grpc_request_is_framed_by_its_length():
    content = WIRES["grpc"].encode(IMAGES).content
    assert struct.unpack(">BI", content[:5]) == (0, len(content) - 5)
    request = service_pb2.ModelInferRequest.FromString(content[5:])
    assert request.raw_input_contents[0] == IMAGES.tobytes()


@given(ROWS)
def test_plain_answers_are_read_in_all_their_forms(rows):
    listed = rows.tolist()
    for answer in (
        listed,
        {"probabilities": listed},
        {"predictions": [{"digit": 0, "probabilities": row} for row in listed]},
    ):
        assert np.array_equal(read_plain(json.dumps(answer).encode(), {}), rows)


@given(ROWS)
def test_answers_of_the_protocol_are_read_as_json_and_as_binary(rows):
    shape = list(rows.shape)
    outputs = [
        {"name": "logits", "shape": shape, "datatype": "FP32", "data": (rows * 0).ravel().tolist()},
        {
            "name": "probabilities",
            "shape": shape,
            "datatype": "FP32",
            "data": rows.ravel().tolist(),
        },
    ]
    content = json.dumps({"outputs": outputs}).encode()
    assert np.array_equal(read_inference(content, {}), rows)
    for output in outputs:
        del output["data"]
        output["parameters"] = {"binary_data_size": rows.nbytes}
    header = json.dumps({"outputs": outputs}).encode()
    content = header + bytes(rows.nbytes) + rows.tobytes()
    assert np.array_equal(read_inference(content, {HEADER_LENGTH: str(len(header))}), rows)


@given(ROWS, st.booleans())
def test_answers_over_grpc_are_read_raw_and_typed(rows, raw):
    answer = service_pb2.ModelInferResponse()
    for name, values in (("logits", rows * 0), ("probabilities", rows)):
        output = answer.outputs.add(name=name, datatype="FP32", shape=rows.shape)
        if raw:
            answer.raw_output_contents.append(values.tobytes())
        else:
            output.contents.fp32_contents.extend(values.ravel())
    assert np.array_equal(read_grpc(answer.SerializeToString(), {}), rows)
