"""Deadlines: the protocol's `timeout` parameter on both transports, and gRPC's own."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc
from tritonclient.utils import InferenceServerException

from service.grpc.http2 import frames as wire
from service.pulse import process_cpu_s
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_loop, publish_slow_model
from tests.e2e.test_http2 import Peer, headers
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


def statistics(server: Server, model: str) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        (one,) = stub.ModelStatistics(inference.ModelStatisticsRequest(name=model)).model_stats
    return one


def inputs(triton: Triton, count: int = 24) -> list[Any]:
    return [triton.input("image", IMAGES[:count], "UINT8")]


def test_timeout_ends_a_request_while_the_model_runs(triton: Triton, slow_server: Server) -> None:
    # By the worker's CPU time: on a busy machine, another program may delay either request.
    (worker,) = slow_server.worker_pids()
    start = process_cpu_s(worker)
    triton.infer("mnist", inputs(triton))
    whole = process_cpu_s(worker) - start
    start = process_cpu_s(worker)
    with pytest.raises(InferenceServerException, match="timeout passed") as caught:
        triton.infer("mnist", inputs(triton), timeout=20_000)
    assert process_cpu_s(worker) - start < whole / 2
    assert triton.code(caught.value) == "DEADLINE_EXCEEDED"
    result = triton.infer("mnist", inputs(triton, 1), timeout=60_000_000)
    assert result.as_numpy("probabilities").shape == (1, 10)


def test_timeout_of_predict_ends_a_request_while_the_model_runs(slow_server: Server) -> None:
    octets = "application/octet-stream"
    status, answer = slow_server.post("/predict?timeout=0.02", IMAGES.tobytes(), octets)
    assert (status, answer["error"]) == (
        504,
        "Request timeout expired: the timeout passed before the answer was ready.",
    )
    status, answer = slow_server.post("/predict?timeout=soon", bytes(784), octets)
    assert status == 400
    assert answer["error"].startswith("timeout: is 'soon'; it is a number of seconds")
    assert slow_server.post("/predict?timeout=600", bytes(784), octets)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        "content-length: 784\r\n\r\n",
        "content-length: 784\r\n\r\nhalf",
        "content-length: 7840000\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "content-length: 784\r\nexpect: 100-continue\r\n\r\n",
    ],
)
def test_timeout_of_predict_counts_while_the_body_arrives(server: Server, sent: str) -> None:
    start = (
        "POST /predict?timeout=0.2 HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/octet-stream\r\n{sent}"
    )
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as client:
        client.sendall(start.encode())
        # It ends before body_timeout, which is 30 s, because the socket would wait for 60 s.
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 "), answer
    assert b"the timeout passed before the answer was ready" in answer
    assert server.post("/predict?timeout=60", bytes(784), "application/octet-stream")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"\0\0\0", b"\0\0\0\1\0half"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_deadline_counts_while_the_message_arrives(
    grpc_server: Server, method: str, sent: bytes
) -> None:
    block = headers(f"/inference.GRPCInferenceService/{method}", grpc_timeout="200m")
    with Peer(grpc_server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, block))
        if sent:
            peer.send(wire.frame(wire.DATA, 0, 1, sent))
        fields, _ = peer.answer(1)
    # grpcio resets the stream: its client has the deadline as well.
    assert fields.get("grpc-status") == "4" or fields["reset"] == "8", fields


@pytest.fixture(scope="module")
def endless_server(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """Its model `loop` runs for as long as it is asked to."""
    root = tmp_path_factory.mktemp("endless")
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", root / "mnist" / "1")
    publish_loop(root)
    return start_server(root, max_run_seconds=3600)


def additions(count: int, timeout_s: float | None = None) -> inference.ModelInferRequest:
    message = inference.ModelInferRequest(model_name="loop")
    message.inputs.add(name="n", datatype="INT64", shape=[])
    message.raw_input_contents.append(count.to_bytes(8, "little"))
    if timeout_s is not None:
        message.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    return message


def failures(server: Server) -> int:
    return int(statistics(server, "loop").inference_stats.fail.count)


@contextlib.contextmanager
def endless_run(stub: Any, server: Server) -> Iterator[None]:
    """The model is busy, from before the next request until the end of the block."""
    running = stub.ModelInfer.future(additions(10**12))
    # Requests are taken up in their order of arrival, so that one is in the queue now.
    before = failures(server)
    yield
    assert not running.done()
    running.cancel()  # this ends the run: no client waits for it
    server.wait_until(lambda: failures(server) > before)


def test_requests_that_cannot_meet_their_deadline_are_never_run(endless_server: Server) -> None:
    with grpc.insecure_channel(endless_server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        # No run has ended yet, so nothing says how long one takes: requests join the queue.
        with endless_run(stub, endless_server):
            for request, timeout in ((additions(1), 0.2), (additions(1, timeout_s=0.2), None)):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(request, timeout=timeout)
                assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        # That run took more than 0.4 s. The next one is expected to as well, so a request with
        # less time is refused when it arrives.
        with endless_run(stub, endless_server):
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(additions(1, timeout_s=0.2))
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                assert "deadline passes before the model" in caught.value.details()
        shed = 'mnist_shed_requests_total{model="loop",reason="deadline",version="1"} 3.0'
        endless_server.wait_until(lambda: shed in endless_server.get("/metrics")[1].decode())
        stub.ModelInfer(additions(1))
        assert statistics(endless_server, "loop").inference_count == 1
