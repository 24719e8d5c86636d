"""What a stop waits for, and for how long."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Server

HALF_SENT = (
    b"POST /predict HTTP/1.1\r\nhost: test\r\ncontent-type: application/octet-stream\r\n"
    b"content-length: 784\r\n\r\n"
) + bytes(300)


@pytest.mark.parametrize("workers", [1, 2])
def test_half_sent_bodies_do_not_hold_a_stop(
    start_server: Callable[..., Server], workers: int
) -> None:
    server = start_server(workers=workers, stop_timeout=1, body_timeout=3600)
    connections = [
        socket.create_connection(("127.0.0.1", server.http_port), timeout=60) for _ in range(8)
    ]
    for connection in connections:
        connection.sendall(HALF_SENT)
    assert server.is_ready()  # the server has had time to read the bodies
    assert server.stop() == 0  # fails after 60 s, and body_timeout is an hour
    assert "Killing worker" not in server.log.read_text()
    for connection in connections:
        connection.close()


@pytest.fixture(params=[True, False], ids=["own front", "grpcio"])
def draining(
    request: pytest.FixtureRequest, start_server: Callable[..., Server]
) -> Iterator[Server]:
    """A server of two workers that has received SIGTERM and drains for longer than a test takes."""
    server = start_server(workers=2, drain_seconds=8, fast_grpc=request.param)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    server.process.terminate()
    yield server
    assert server.stop() == 0
    assert "Killing worker" not in server.log.read_text()


def test_a_server_that_drains_is_not_ready_in_any_worker_and_still_answers(
    draining: Server,
) -> None:
    server = draining
    began = time.monotonic()
    server.wait_until(lambda: not server.is_ready())
    stub_address = server.grpc
    time.sleep(0.5)  # both workers have had their signal
    for _ in range(20):  # each on a connection of its own, which any worker takes
        status, body = server.get("/v2/health/ready")
        assert status == 503
        assert json.loads(body)["reason"] == "The server is stopping."
        assert server.get("/v2/health/live")[0] == 200
        assert server.post("/predict", bytes(784), "application/octet-stream")[0] == 200
    with grpc.insecure_channel(stub_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    # No assertion above can have come after the end of the drain: the ports would be closed.
    server.process.wait(timeout=60)
    assert time.monotonic() - began > 7
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.http_port))
