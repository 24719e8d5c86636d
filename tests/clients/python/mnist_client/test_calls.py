"""Both transports give the same results, of every call, from a real server."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from mnist_client import Prediction, Reading, UnexpectedAnswer
from mnist_client.calls import GrpcAnswer, HttpAnswer, Predict, Read, result_of
from mnist_client.images import payload_of
from mnist_client.results import Timings
from mnist_client.stubs.digits.v1 import digits_pb2
from PIL import Image

from tests.clients.python.calling import Calling
from tests.conftest import ROOT, Server

SEVEN = str(ROOT / "docs" / "seven.png")
sync = Calling(asynchronous=False)


def on_both(server: Server, method: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    http, grpc = f"http://{server.http}", f"grpc://{server.grpc}"
    return sync(http, method, *arguments, **options), sync(grpc, method, *arguments, **options)


def comparable(prediction: Prediction) -> Any:
    """Without times and ids; gRPC has float32, HTTP its shortest decimal form."""
    numbers = np.float32(prediction.probabilities).tolist(), np.float32(prediction.entropy_bits)
    return dataclasses.replace(
        prediction, probabilities=(), entropy_bits=0, timings=Timings(0), request_id=""
    ), numbers


@pytest.mark.parametrize("image", [SEVEN, bytes(784)], ids=["accepted", "blank"])
def test_predictions_are_the_same(server: Server, image: Any) -> None:
    http, grpc = on_both(server, "predict", image, of_call={"explain": True})
    assert comparable(http) == comparable(grpc)
    assert (http.model_name, http.prediction_set is None) == ("mnist", False)
    assert http.request_id
    assert grpc.request_id
    assert http.accepted == (image == SEVEN)
    assert bool(http.reason) == bool(http.hint) == (image != SEVEN)
    assert bool(http.steps) == (image == SEVEN)
    if http.steps:
        assert http.steps[-1].png.startswith(b"\x89PNG")
        assert http.timings.model is not None


def test_readings_are_the_same(server: Server) -> None:
    page = Image.new("L", (260, 240))
    seven = Image.open(SEVEN).convert("L").resize((112, 112))
    for corner in ((0, 4), (140, 4), (60, 124)):
        page.paste(seven, corner)
    http, grpc = on_both(server, "read", page)
    assert isinstance(http, Reading)
    assert (http.text, http.lines) == ("77\n7", ("77", "7"))
    for ours, theirs in zip(http.digits, grpc.digits, strict=True):
        assert (ours.box, ours.line) == (theirs.box, theirs.line)
        assert comparable(ours.prediction) == comparable(theirs.prediction)
    assert http.timings.picture is not None
    http, grpc = on_both(server, "read", Image.new("L", (99, 99)))
    assert http.hint == grpc.hint != ""
    assert http.digits == grpc.digits == ()


def test_metadata_are_the_same(server: Server) -> None:
    http, grpc = on_both(server, "server_metadata")
    assert http == grpc
    assert http.name == "mnist-service"
    for arguments in (("mnist",), ("mnist", "1")):
        http, grpc = on_both(server, "model_metadata", *arguments)
        assert http == grpc
        assert (http.inputs[0].name, http.inputs[0].shape) == ("image", (-1, 28, 28))
        assert dict(http.properties)["execution_provider"] == "CPUExecutionProvider"


def test_a_server_that_serves_is_healthy(server: Server) -> None:
    http, grpc = on_both(server, "health")
    assert http == grpc
    assert (http.live, http.ready, http.reason) == (True, True, "")


def test_names_of_models_are_escaped() -> None:
    call = Predict((payload_of(bytes(784)),), "a&b=c", "1")
    assert call.http_request(5).path == "predict?model=a%26b%3Dc&version=1&timeout=5"


def test_the_answer_of_a_model_of_other_things_is_named() -> None:
    call = Predict((payload_of(bytes(784)),), "", "")
    body = b'{"model_name":"fashion","predictions":[{"label":"ankle boot"}]}'
    with pytest.raises(UnexpectedAnswer, match="something other than digits; its answer is ankle"):
        result_of(call.from_http, HttpAnswer(200, {}, body, 0.0), "here")


@pytest.mark.parametrize(
    "wrong",
    [
        {"digit": 99},
        {"digit": "seven"},
        {"probabilities": "abcdefghij"},
        {"probabilities": [1.0]},
        {"probabilities": [1e9] * 10},
        {"probabilities": [float("nan")] * 10},
        {"entropy_bits": "x"},
        {"accepted": "no"},
        {"prediction_set": ["a"]},
    ],
)
def test_fields_of_wrong_types_are_no_prediction(wrong: dict[str, Any]) -> None:
    image = payload_of(bytes(784))
    row = {"digit": 7, "probabilities": [0.1] * 10, "entropy_bits": 0, "prediction_set": None}
    body: dict[str, Any] = {"model_name": "m", "model_version": "1"}
    body["predictions"] = [{**row, "accepted": None}]
    right = HttpAnswer(200, {}, json.dumps(body).encode(), 0.0)
    assert result_of(Predict((image,), "", "").from_http, right, "here")[0].digit == 7
    row = {**body["predictions"][0], **wrong, "box": [0, 0, 1, 1], "line": 0}
    body |= {"predictions": [row], "text": "7", "lines": ["7"], "digits": [row]}
    answer = HttpAnswer(200, {}, json.dumps(body).encode(), 0.0)
    for call in (Predict((image,), "", ""), Read(image, "", "")):
        with pytest.raises(UnexpectedAnswer, match="is not one of mnist-service"):
            result_of(call.from_http, answer, "here")


@pytest.mark.parametrize("row", [{"digit": 99, "probabilities": [0.1] * 10}, {"digit": 7}])
def test_a_message_without_ten_digits_is_no_prediction(row: dict[str, Any]) -> None:
    call = Predict((payload_of(bytes(784)),), "", "")
    response = digits_pb2.PredictResponse(predictions=[digits_pb2.Prediction(**row)])
    with pytest.raises(UnexpectedAnswer, match="is not one of mnist-service"):
        result_of(call.from_grpc, GrpcAnswer(response.SerializeToString(), "", 0.0), "here")


@pytest.mark.parametrize("box", [[9, 9, 1, 1], [0, 0, 10**30, 10**30], [0, 0, 1], "abcd", None])
def test_a_box_that_cannot_be_drawn_is_no_reading(box: Any) -> None:
    row = {"digit": 7, "probabilities": [0.1] * 10, "entropy_bits": 0, "prediction_set": None}
    digits = [{**row, "accepted": None, "box": box, "line": 0}]
    body = {"model_name": "m", "model_version": "1", "text": "7", "lines": ["7"], "digits": digits}
    answer = HttpAnswer(200, {}, json.dumps(body).encode(), 0.0)
    with pytest.raises(UnexpectedAnswer, match="is not one of mnist-service"):
        result_of(Read(payload_of(bytes(784)), "", "").from_http, answer, "here")
