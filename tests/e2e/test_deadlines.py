"""Deadlines: the protocol's `timeout` parameter on both transports, and gRPC's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc
from tritonclient.utils import InferenceServerException

from tests.conftest import Server
from tests.e2e.onnx_models import publish_slow_model
from tests.e2e.triton import Triton, fixture_of

IMAGES = np.zeros((24, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def slow_server(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    root = tmp_path_factory.mktemp("slow")
    publish_slow_model(root)
    return start_server(root)


triton = fixture_of("slow_server")


def inferred(server: Server) -> int:
    """The number of images that the model has processed."""
    with grpc.insecure_channel(server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        (model,) = stub.ModelStatistics(inference.ModelStatisticsRequest()).model_stats
    return int(model.inference_count)


def inputs(triton: Triton, count: int = 24) -> list[Any]:
    return [triton.input("image", IMAGES[:count], "UINT8")]


def test_timeout_ends_a_request_while_the_model_runs(triton: Triton) -> None:
    start = time.monotonic()
    triton.infer("mnist", inputs(triton))
    whole = time.monotonic() - start
    start = time.monotonic()
    with pytest.raises(InferenceServerException, match="timeout passed") as caught:
        triton.infer("mnist", inputs(triton), timeout=20_000)
    assert time.monotonic() - start < whole / 2
    assert triton.code(caught.value) == "DEADLINE_EXCEEDED"
    result = triton.infer("mnist", inputs(triton, 1), timeout=60_000_000)
    assert result.as_numpy("probabilities").shape == (1, 10)


def test_request_that_expires_in_the_queue_is_not_run(slow_server: Server) -> None:
    with grpc.insecure_channel(slow_server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)

        def request(count: int) -> inference.ModelInferRequest:
            message = inference.ModelInferRequest(model_name="mnist")
            message.inputs.add(name="image", datatype="UINT8", shape=[count, 28, 28])
            message.raw_input_contents.append(IMAGES[:count].tobytes())
            return message

        before = inferred(slow_server)
        first = stub.ModelInfer.future(request(24))
        assert inferred(slow_server) == before  # the first run takes a second or so
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request(7), timeout=0.02)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert not first.done()
        first.result()
        stub.ModelInfer(request(1))
        assert inferred(slow_server) - before == 25
