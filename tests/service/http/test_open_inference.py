from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from service import SERVER_NAME, __version__
from service.core.errors import InvalidArgument, ModelNotFound
from service.http import open_inference
from service.http.codec import HEADER_LENGTH
from service.http.message import HttpRequest, HttpResponse
from service.operations.inference import INLINE_BYTES
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, publish_linear, run_with_operations

INPUT = np.random.default_rng(2).normal(size=(2, 784)).astype(np.float32)
SCORES = INPUT @ WEIGHTS


def request_of(body: bytes = b"", **headers: str) -> HttpRequest:
    return HttpRequest(method="POST", path="/", header=headers.get, body=body)


def json_request(**fields: Any) -> HttpRequest:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 784], "data": INPUT.tolist()}
    return request_of(orjson.dumps({"inputs": [tensor], **fields}))


def scores_in(response: HttpResponse) -> np.ndarray:
    (output,) = orjson.loads(response.body)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [2, 10])
    return np.array(output["data"], np.float32).reshape(2, 10)


def test_json_request_is_answered_in_json(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        response = await open_inference.infer(operations.inference, json_request(id="7"), "linear")
        assert np.allclose(scores_in(response), SCORES, atol=1e-4)
        assert orjson.loads(response.body)["id"] == "7"
        assert orjson.loads(response.body)["model_version"] == "1"

    run_with_operations(tmp_path, scenario)


def test_large_json_is_decoded_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_linear(tmp_path)
    loops: list[bool] = []
    decode = open_inference.decode

    def recording(*arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)
        return decode(*arguments)

    monkeypatch.setattr(open_inference, "decode", recording)

    async def scenario(operations: Operations) -> None:
        for padding in (0, INLINE_BYTES):
            request = json_request(unknown="x" * padding)
            response = await open_inference.infer(operations.inference, request, "linear")
            assert np.allclose(scores_in(response), SCORES, atol=1e-4)

    run_with_operations(tmp_path, scenario)
    assert loops == [True, False]


def test_body_without_json_is_the_only_input(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        request = request_of(INPUT.tobytes(), **{HEADER_LENGTH: "0"})
        response = await open_inference.infer(operations.inference, request, "linear", "1")
        length = int(dict(response.headers)[HEADER_LENGTH])
        scores = np.frombuffer(response.body[length:], np.float32).reshape(2, 10)
        assert np.allclose(scores, SCORES, atol=1e-4)
        short = request_of(INPUT.tobytes()[:-1], **{HEADER_LENGTH: "0"})
        with pytest.raises(InvalidArgument, match="'x'"):
            await open_inference.infer(operations.inference, short, "linear")

    run_with_operations(tmp_path, scenario)


def test_metadata_describe_the_server_and_the_model(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        response = await open_inference.server_metadata(operations.inference, request_of())
        server = orjson.loads(response.body)
        assert (server["name"], server["version"]) == (SERVER_NAME, __version__)
        assert "binary_tensor_data" in server["extensions"]
        response = await open_inference.model_metadata(operations.inference, request_of(), "linear")
        assert orjson.loads(response.body) == {
            "name": "linear",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 784]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
            "parameters": {
                "execution_provider": "CPUExecutionProvider",
                "execution_provider_fallback": "",
                "batching": "verified for up to 64 rows",
            },
        }

    run_with_operations(tmp_path, scenario)


def test_model_that_is_not_loaded_is_not_found(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        response = await open_inference.model_ready(operations.inference, request_of(), "linear")
        assert orjson.loads(response.body) == {"name": "linear", "ready": True}
        for handler in (open_inference.model_ready, open_inference.model_metadata):
            for model, version in (("none", ""), ("linear", "2")):
                with pytest.raises(ModelNotFound, match=model):
                    await handler(operations.inference, request_of(), model, version)
        with pytest.raises(ModelNotFound, match="none"):
            await open_inference.infer(operations.inference, json_request(), "none")

    run_with_operations(tmp_path, scenario)


def test_server_is_ready_with_its_default_model_until_it_stops(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        ready = await open_inference.ready(operations.inference, request_of())
        assert (ready.status, orjson.loads(ready.body)["ready"]) == (200, True)
        operations.inference.stopping = True
        stopping = await open_inference.ready(operations.inference, request_of())
        assert stopping.status == 503
        assert orjson.loads(stopping.body) == {
            "ready": False,
            "reason": "The server is stopping.",
            "failures": {},
        }
        live = await open_inference.live(operations.inference, request_of())
        assert (live.status, orjson.loads(live.body)) == (200, {"live": True})

    run_with_operations(tmp_path, scenario)


def test_server_without_its_default_model_says_why_it_is_not_ready(tmp_path: Path) -> None:
    publish_linear(tmp_path, card="{")

    async def scenario(operations: Operations) -> None:
        response = await open_inference.ready(operations.inference, request_of())
        body = orjson.loads(response.body)
        assert response.status == 503
        assert body["reason"] == "Model 'linear' is not loaded."
        assert list(body["failures"]) == ["linear/1"]

    run_with_operations(tmp_path, scenario)
