"""Runs of models that take very long, or never end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_loop, publish_pool
from tests.faults.test_workers import is_alive, replaced

FOR_EVER = 10**12
RAW = "application/octet-stream"
BLANK = bytes(784)
Answer = tuple[int, Any]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with `mnist`, `loop` and `pool`."""
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "mnist" / "1")
    publish_loop(tmp_path)
    publish_pool(tmp_path)
    return tmp_path


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    """Threads of clients that wait for an answer."""
    with ThreadPoolExecutor(32) as executor:
        yield executor


def loop(server: Server, n: int, model: str = "loop", **parameters: int) -> Answer:
    body = {
        "parameters": parameters,
        "inputs": [{"name": "n", "datatype": "INT64", "shape": [], "data": [n]}],
    }
    return server.post(f"/v2/models/{model}/infer", json.dumps(body).encode(), "application/json")


def pool(server: Server, width: int) -> Answer:
    """The status; the answer of a request that fails."""
    headers = {"content-type": RAW, "inference-header-content-length": "0"}
    body = bytes(512 * width * 4)
    status, answer = server.request("POST", "/v2/models/pool/infer", body, headers)
    return status, None if status == 200 else json.loads(answer)


def predict(server: Server) -> int:
    return server.post("/predict", BLANK, RAW)[0]


def terminated(server: Server, model: str) -> int:
    name = f'mnist_runs_terminated_total{{model="{model}",version="1"}} '
    lines = server.get("/metrics")[1].decode().splitlines()
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def has_begun(server: Server, running: Future[Answer]) -> None:
    """Return when the request has left the queue for the model, which it never leaves."""
    # Requests are taken up in their order of arrival, and this one came later.
    predict(server)
    predict(server)
    assert not running.done()


def test_nothing_waits_for_a_run_that_depends_on_values(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    """The loop served `n` = 0 quickly when it was loaded, and before this request."""
    server = start_server(models, stop_timeout=1)
    for _ in range(50):
        assert loop(server, 1)[0] == 200
    running = clients.submit(loop, server, FOR_EVER)
    for _ in range(20):
        assert server.get("/v2/health/live")[0] == 200
        assert predict(server) == 200
        assert not running.done()
    with grpc.insecure_channel(server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(inference.ServerLiveRequest(), timeout=30).live
    assert server.stop() == 0


def test_timeouts_and_deadlines_end_requests_whose_run_goes_on(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    server = start_server(models, stop_timeout=1)
    status, answer = loop(server, FOR_EVER, timeout=100_000)
    assert (status, answer) == (
        504,
        {"error": "Request timeout expired: the timeout passed before the answer was ready."},
    )
    with grpc.insecure_channel(server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        request = inference.ModelInferRequest(model_name="loop")
        request.inputs.add(name="n", datatype="INT64", shape=[]).contents.int64_contents.append(
            FOR_EVER
        )
        # The server ends the call: the client's own deadline is later.
        request.parameters["timeout"].int64_param = 100_000
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=30)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "timeout passed" in caught.value.details()
    assert server.stop() == 0


def test_a_run_is_ended_after_max_run_seconds(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    server = start_server(models, max_run_seconds=1)
    (worker,) = server.worker_pids()
    status, answer = loop(server, FOR_EVER)
    assert status == 504
    assert answer == {"error": "The run of the model was ended after 1 seconds (max_run_seconds)."}
    status, answer = loop(server, 3)  # the model is free again
    assert (status, answer["outputs"][0]["data"]) == (200, [3.0])
    assert terminated(server, "loop") == 1
    assert server.log.read_text().count("a run is ended after 1 s (max_run_seconds)") == 1
    assert server.worker_pids() == [worker]
    assert server.stop() == 0


def test_a_worker_whose_run_cannot_be_ended_is_replaced_and_answers_until_then(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    server = start_server(models, max_run_seconds=1)
    (worker,) = server.worker_pids()
    running = clients.submit(pool, server, 512)
    waiting = clients.submit(pool, server, 1)
    statuses = []
    end = time.monotonic() + 180
    while is_alive(worker):
        assert time.monotonic() < end, server.log.read_text()
        # The kernel resets connections that the worker has not accepted when its port closes.
        with contextlib.suppress(OSError):
            statuses.append(predict(server))
    assert set(statuses) == {200}
    assert running.result() == (
        504,
        {"error": "The run of the model was ended after 1 seconds (max_run_seconds)."},
    )
    # It came first or second; then it was refused, when the run did not end.
    assert waiting.result()[0] in (200, 503)
    server.wait_until(lambda: len(server.worker_pids()) == 1)
    assert pool(server, 1)[0] == 200
    assert replaced(server, "stuck_run") == 1
    assert replaced(server, "silent") == replaced(server, "ended") == 0
    log = server.log.read_text()
    assert log.count("A run of model pool version 1 was ended after 1 s") == 1
    assert log.count("Worker-1 has a run of a model that cannot be ended; a new worker") == 1
    assert server.stop() == 0


def test_control_and_metrics_do_not_wait_for_a_run(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    server = start_server(models, stop_timeout=1, max_run_seconds=3600)
    running = clients.submit(pool, server, 512)
    has_begun(server, running)
    for path in (
        "/metrics",
        "/v2/health/ready",
        "/v2/models/pool",
        "/v2/models/pool/ready",
        "/v2/models/stats",
        "/v2/models/pool/versions/1/stats",
    ):
        assert server.get(path)[0] == 200, path
    for action in (
        "repository/index",
        *(
            f"repository/models/{name}/{change}"
            for name in ("mnist", "loop", "pool")
            for change in ("unload", "load")
        ),
    ):
        assert server.request("POST", f"/v2/{action}", b"{}")[0] == 200, action
    assert pool(server, 1)[0] == 200  # by the model that was loaded again
    assert not running.done()
    assert server.stop() == 0


def test_models_that_hang_leave_the_others_their_threads(
    start_server: Callable[..., Server], models: Path, clients: ThreadPoolExecutor
) -> None:
    """More runs than a pool of Python's default size has threads, up to 16 cores."""
    names = [f"loop{number}" for number in range(min(os.cpu_count() or 1, 16) + 5)]
    for name in names:
        publish_loop(models, name)
    server = start_server(models, stop_timeout=1, model_control_mode="explicit", load_model="*")
    running = [clients.submit(loop, server, FOR_EVER, name) for name in names]
    has_begun(server, running[0])
    assert loop(server, 7)[1]["outputs"][0]["data"] == [7.0]
    assert server.request("POST", "/v2/repository/models/loop/load", b"{}")[0] == 200
    assert not any(each.done() for each in running)
    assert server.stop() == 0


def test_a_warm_up_that_does_not_end_is_ended_and_the_model_is_loaded(
    start_server: Callable[..., Server], models: Path
) -> None:
    server = start_server(models, max_run_seconds=1, model_control_mode="explicit", load_model="*")
    publish_loop(models, "endless", is_endless=True)
    status, answer = server.post("/v2/repository/models/endless/load", b"{}", "application/json")
    assert status == 200, answer
    assert "warm-up" in server.log.read_text()
    assert predict(server) == 200
    assert server.stop() == 0
