"""Models that answer with NaN or infinite values: an error that names the model, never null."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.operations.digits import INLINE_ROWS
from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import Server

OCTETS = "application/octet-stream"
KINDS = ("logits", "probabilities")
INK = bytes([0] * 400 + [255] * 384)
BLANK = bytes(784)  # 0/0


def publish_faulty(root: Path, name: str, kind: str, divisor: str, **more: object) -> None:
    """Publish a model that divides by the "ink" of the image, or by "zero"."""
    weights = np.random.default_rng(0).uniform(0, 1, (784, 10)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array([1]), "axes"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["products"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["ink"], keepdims=1),
            helper.make_node("Div", ["products", divisor], ["scores"]),
        ],
        "faulty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = root / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    card = {"output_kinds": {"scores": kind}, "batching": True, **more}
    (folder / "model.json").write_text(json.dumps(card))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Server]) -> Server:
    root = tmp_path_factory.mktemp("faulty")
    for kind in KINDS:
        publish_faulty(root, f"faulty-{kind}", kind, "ink")
    publish_faulty(root, "always", "logits", "zero")
    publish_faulty(root, "letters", "logits", "zero", labels=list("abcdefghij"))
    return start_server(root, model="faulty-logits")


# Few rows and many are computed in different ways; the last ones become JSON in parts.
@pytest.mark.parametrize("rows", [1, 20, INLINE_ROWS + 100])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_nan_is_an_error_that_names_the_model(
    faulty: Server, kind: str, rows: int
) -> None:
    name = f"faulty-{kind}"
    with grpc.insecure_channel(faulty.grpc) as channel:
        predict = digits_pb2_grpc.DigitClassifierStub(channel).Predict
        for pixels, is_right in ((INK * rows, True), (INK * (rows - 1) + BLANK, False)):
            status, answer = faulty.post(f"/predict?model={name}", pixels, OCTETS)
            request = digits_pb2.PredictRequest(model_name=name, pixels=pixels)
            if is_right:
                assert status == 200
                assert len(answer["predictions"]) == rows
                assert len(predict(request, timeout=120).predictions) == rows
                continue
            assert status == 500
            assert answer.keys() == {"error"}
            assert f"Model '{name}' is at fault" in answer["error"]
            with pytest.raises(grpc.RpcError) as raised:
                predict(request, timeout=120)
            assert raised.value.code() == grpc.StatusCode.INTERNAL
            assert raised.value.details() == answer["error"]
    assert "Traceback" not in faulty.log.read_text()
    assert "RuntimeWarning" not in faulty.log.read_text()


def test_a_model_of_other_classes_is_named_too(faulty: Server) -> None:
    body = json.dumps({"x": [0] * 784}).encode()
    status, answer = faulty.post("/predict?model=letters", body, "application/json")
    assert status == 500
    assert answer["error"].startswith("Model 'letters' is at fault: it answered this input with")


def test_the_infer_endpoint_returns_what_the_model_answered(faulty: Server) -> None:
    answer = faulty.request(
        "POST",
        "/v2/models/faulty-logits/infer",
        bytes(784 * 4),
        {"content-type": OCTETS, "inference-header-content-length": "0"},
    )
    assert answer[0] == 200
    assert np.isnan(np.frombuffer(answer[1][-40:], np.float32)).all()


def test_reading_with_such_a_model_is_the_same_error(faulty: Server) -> None:
    file = io.BytesIO()
    picture = Image.new("L", (200, 100), 240)
    picture.paste(20, (90, 20, 98, 80))
    picture.save(file, "PNG")
    status, answer = faulty.post("/read?model=always", file.getvalue(), "image/png")
    assert (status, answer["error"].split(":")[0]) == (500, "Model 'always' is at fault")
    with grpc.insecure_channel(faulty.grpc) as channel:
        read = digits_pb2_grpc.DigitClassifierStub(channel).Read
        with pytest.raises(grpc.RpcError, match="'always' is at fault") as raised:
            read(digits_pb2.ReadRequest(image=file.getvalue(), model_name="always"), timeout=120)
    assert raised.value.code() == grpc.StatusCode.INTERNAL
