"""The server as a process: starting, refusing to start, swapping models, stopping."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import SHIPPED_MODELS, Server, free_ports
from tests.e2e.onnx_models import publish_slow_model

RAW = "application/octet-stream"
BLANK = bytes(784)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the shipped repository that a test may change."""
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "models" / "mnist" / "1")
    return tmp_path / "models"


def publish(repository: Path, version: str, damaged: bool = False) -> None:
    """Publish the shipped model as another version by rename, as mnist-train does."""
    temporary = repository / "mnist" / f".tmp-{version}"
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", temporary)
    if damaged:
        (temporary / "model.onnx").write_bytes(b"not a model")
    temporary.rename(repository / "mnist" / version)


def test_sigterm_finishes_accepted_requests_on_both_fronts_and_exits_0(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    publish_slow_model(tmp_path)
    server = start_server(tmp_path)
    batch = BLANK * 16
    over_http = http.client.HTTPConnection(server.http, timeout=60)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        over_http.request("POST", "/predict", batch, {"content-type": RAW})
        over_grpc = stub.Predict.future(digits_pb2.PredictRequest(pixels=batch))
        # The server has received both when it answers calls that came later. It answers them while
        # the model is busy, since slow inference runs in a thread.
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert server.is_ready()
        assert not over_grpc.done()
        assert server.stop() == 0
        assert len(over_grpc.result().predictions) == 16
        response = over_http.getresponse()
        assert response.status == 200
        assert len(json.load(response)["predictions"]) == 16
    assert not is_live(server)


def test_a_slow_call_ends_when_its_deadline_passes(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    publish_slow_model(tmp_path)
    server = start_server(tmp_path)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        first = stub.Predict.future(digits_pb2.PredictRequest(pixels=BLANK * 64))
        # The answer shows that the server has received the first call, before the second one below.
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(digits_pb2.PredictRequest(pixels=BLANK), timeout=0.05)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(first.result().predictions) == 64


def test_a_new_version_is_served_without_losing_a_request(
    start_server: Callable[..., Server], repository: Path
) -> None:
    server = start_server(repository, poll_interval=0.05)
    versions: list[str] = []
    failures: list[object] = []
    done = threading.Event()

    def predict() -> None:
        while not done.is_set():
            status, answer = server.post("/predict", BLANK, RAW)
            (versions if status == 200 else failures).append(answer.get("model_version"))

    client = threading.Thread(target=predict)
    client.start()
    try:
        publish(repository, "2")
        server.wait_until(lambda: "2" in versions[-1:])
        publish(repository, "10")
        server.wait_until(lambda: "10" in versions[-1:])
    finally:
        done.set()
        client.join()
    assert failures == []
    assert versions == sorted(versions, key=int)  # no answer of an older version after a newer
    # The newest two stay loaded.
    assert server.get("/v2/models/mnist/versions/2/ready")[0] == 200
    assert server.get("/v2/models/mnist/versions/1/ready")[0] == 404


def test_a_broken_version_is_reported_and_the_old_one_keeps_serving(
    start_server: Callable[..., Server], repository: Path
) -> None:
    server = start_server(repository, poll_interval=0.05)
    publish(repository, "2", damaged=True)
    server.wait_until(lambda: b"mnist/2" in server.get("/v2/health/ready")[1])
    assert server.post("/predict", BLANK, RAW)[1]["model_version"] == "1"
    assert b"mnist_model_load_failures 1.0" in server.get("/metrics")[1]
    assert "Version 2 of model mnist is not served" in server.log.read_text()


def test_a_server_without_a_model_waits_for_one_and_says_so(
    start_server: Callable[..., Server], repository: Path
) -> None:
    (repository / "mnist").rename(repository.parent / "mnist")
    server = start_server(repository, ready=False, poll_interval=0.05)
    server.wait_until(lambda: "Not ready" in server.log.read_text())
    server.wait_until(lambda: is_live(server))
    status, body = server.get("/v2/health/ready")
    assert status == 503
    assert b"mnist" in body
    assert server.post("/predict", BLANK, RAW)[0] == 404
    (repository.parent / "mnist").rename(repository / "mnist")
    server.wait_until(server.is_ready)


def is_live(server: Server) -> bool:
    try:
        return server.get("/v2/health/live")[0] == 200
    except OSError:
        return False


def test_two_workers_share_both_ports_and_one_set_of_metrics(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(workers=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    for _ in range(40):
        assert server.post("/predict", BLANK, RAW)[0] == 200
    counted = b'mnist_request_seconds_count{code="200",operation="predict",transport="http"} 40.0'
    assert counted in server.get("/metrics")[1]


def test_a_killed_worker_is_replaced(start_server: Callable[..., Server]) -> None:
    server = start_server()
    (killed,) = server.worker_pids()
    os.kill(killed, signal.SIGKILL)
    server.wait_until(lambda: server.worker_pids() not in ([], [killed]))
    server.wait_until(server.is_ready)
    assert server.post("/predict", BLANK, RAW)[0] == 200


def test_flask_alone_serves_the_same_routes(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    arguments = ["--app", "service.worker:flask_app", "run", "--port", str(port)]
    flask = subprocess.Popen(
        [sys.executable, "-m", "flask", *arguments],
        env=os.environ | {"MNIST_MODELS": str(SHIPPED_MODELS)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert flask.stderr is not None
        while f":{port}" not in (line := flask.stderr.readline()):
            assert line, "flask has ended"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/predict", BLANK, {"content-type": RAW})
        answer = json.load(connection.getresponse())
        assert len(answer["predictions"][0]["probabilities"]) == 10
        connection.close()
    finally:
        flask.terminate()
        flask.communicate(timeout=120)


def serve(*arguments: str) -> tuple[int, str]:
    """Run mnist-serve, which ends at once; its exit status and standard error."""
    run = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.returncode, run.stderr


def test_a_port_in_use_is_refused_at_start(server: Server) -> None:
    status, error = serve("--http-port", str(server.http_port))
    assert status == 2
    assert f"port {server.http_port}" in error
    status, error = serve("--grpc-port", str(server.grpc_port), "--http-port", "18123")
    assert status == 2
    assert "grpc_port" in error


def test_a_grpc_port_taken_after_the_check_stops_the_server_at_once() -> None:
    http_port, grpc_port = free_ports(2)
    unchecked = (
        "import sys; from service import cli, supervisor; "
        "supervisor.reserve = lambda settings: []; sys.exit(cli.main())"
    )
    with socket.create_server(("127.0.0.1", grpc_port)):
        ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        run = subprocess.run(
            [sys.executable, "-c", unchecked, *ports, "--models", str(SHIPPED_MODELS)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 1
    assert "Cannot start" in run.stderr
    assert "Killing worker" not in run.stderr


def test_a_missing_repository_is_refused_at_start() -> None:
    status, error = serve("--models", "/no/such/folder")
    assert status == 2
    assert "mnist-train" in error


def test_cuda_is_never_replaced_by_the_cpu_silently(start_server: Callable[..., Server]) -> None:
    """On a CPU build `cuda` refuses to start, and `auto` gives the reason in the metadata."""
    server = start_server(provider="cuda", ready=False)
    assert server.process.wait(timeout=60) == 1
    assert "without CUDA" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    auto = start_server(provider="auto")
    assert b"without CUDA" in auto.get("/v2/models/mnist")[1]
    assert "CPUExecutionProvider" in auto.log.read_text()


def test_a_build_without_cuda_is_logged_once_per_server(
    start_server: Callable[..., Server], repository: Path
) -> None:
    server = start_server(repository, workers=2, poll_interval=0.05)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    publish(repository, "2")
    server.wait_until(lambda: server.log.read_text().count("Loaded mnist version 2") == 2)
    assert server.log.read_text().count("without CUDA") == 1
