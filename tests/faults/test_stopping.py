"""What a stop waits for, and for how long."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Server

HALF_SENT = (
    b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"
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


@pytest.mark.parametrize("is_own", [True, False], ids=["own fronts", "grpcio and Granian"])
def test_connections_that_say_nothing_do_not_hold_a_stop(
    start_server: Callable[..., Server], is_own: bool
) -> None:
    """Half a TLS handshake or preface included. header_timeout alone would hold it for an hour."""
    server = start_server(
        fast_grpc=is_own, fast_http=is_own, stop_timeout=600, header_timeout=3600, idle_timeout=3600
    )
    connections = [
        socket.create_connection(("127.0.0.1", port), timeout=60)
        for port in (server.grpc_port, server.http_port)
        for _ in range(4)
    ]
    for connection in connections[::2]:
        connection.sendall(b"PRI * HT")
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
        assert server.stop() == 0  # fails after 60 s
    assert "Killing worker" not in server.log.read_text()
    for connection in connections:
        connection.close()


class BadCollector(threading.Thread):
    """Takes connections, reads a little, sends `answer`, and then closes or never does."""

    def __init__(self, answer: bytes, *, closes: bool) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._answer, self._closes = answer, closes
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.taken = 0

    def run(self) -> None:
        kept = []
        while True:
            connection, _ = self._listener.accept()
            self.taken += 1
            if self._answer:
                connection.recv(65536)
                connection.sendall(self._answer)
            if self._closes:
                connection.close()
            else:
                kept.append(connection)


COLLECTORS = {
    "never answers": BadCollector(b"", closes=False),
    "closes at once": BadCollector(b"", closes=True),
    "answers garbage": BadCollector(b"\xff\0garbage\r\n" * 100, closes=False),
    "fails forever": BadCollector(
        b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", closes=True
    ),
    "redirects to itself": BadCollector(
        b"HTTP/1.1 307 X\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        closes=True,
    ),
    "never ends its headers": BadCollector(b"HTTP/1.1 200 OK\r\nx: ", closes=False),
}


@pytest.mark.parametrize("kind", [*COLLECTORS, "is absent"])
def test_a_collector_of_traces_does_not_hold_a_stop(
    start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    collector = COLLECTORS.get(kind)
    if collector is not None:
        collector.start()
    endpoint = "http://127.0.0.1:1" if collector is None else collector.url
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    server = start_server(traces=True, traces_sample=1)
    for _ in range(200):
        assert server.get("/v2/health/live")[0] == 200
    if collector is not None:
        server.wait_until(lambda: collector.taken > 0)
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Killing worker" not in log
    assert "did not respond" not in log
    # The thread that waits for it may be named, if the machine stood still; the event loop may not.
    assert not re.search(r": at [^;\n]*SpanExporter\.stop", log)
    assert log.count("Traces cannot be exported") <= 1
    assert ("traces are lost" in log) or ("cannot be exported" in log)


@pytest.mark.parametrize("is_own", [True, False], ids=["own fronts", "grpcio and Granian"])
def test_a_server_that_drains_is_not_ready_in_any_worker_and_still_answers(
    start_server: Callable[..., Server], is_own: bool
) -> None:
    server = start_server(workers=2, drain_seconds=3600, fast_grpc=is_own, fast_http=is_own)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    server.process.terminate()
    # Each probe has a connection of its own, which any worker takes.
    server.wait_until(lambda: not any(server.is_ready() for _ in range(20)))
    for _ in range(20):
        status, body = server.get("/v2/health/ready")
        assert status == 503
        assert json.loads(body)["reason"] == "The server is stopping."
        assert server.get("/v2/health/live")[0] == 200
        assert server.post("/predict", bytes(784), "application/octet-stream")[0] == 200
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    server.process.kill()  # it would drain for an hour


@pytest.mark.parametrize("is_own", [True, False], ids=["own fronts", "grpcio and Granian"])
def test_a_drain_ends_with_closed_ports_and_status_0(
    start_server: Callable[..., Server], is_own: bool
) -> None:
    server = start_server(workers=2, drain_seconds=1, fast_grpc=is_own, fast_http=is_own)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began >= 1
    assert "Killing worker" not in server.log.read_text()
    for port in (server.http_port, server.grpc_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
