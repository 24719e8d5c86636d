"""Both transports give the same results, of every call, from a real server."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from mnist_client import Prediction, Reading, UnexpectedAnswer
from mnist_client.calls import HttpAnswer, Predict, result_of
from mnist_client.images import payload_of
from mnist_client.results import Timings
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
    assert call.http_request().path == "predict?model=a%26b%3Dc&version=1"


def test_the_answer_of_a_model_of_other_things_is_named() -> None:
    call = Predict((payload_of(bytes(784)),), "", "")
    body = b'{"model_name":"fashion","predictions":[{"label":"ankle boot"}]}'
    with pytest.raises(UnexpectedAnswer, match="something other than digits; its answer is ankle"):
        result_of(call.from_http, HttpAnswer(200, {}, body, 0.0), "here")
