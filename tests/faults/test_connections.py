"""Clients that hold connections."""

from __future__ import annotations

import contextlib
import http.client
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from service.probe import main as probe
from tests.conftest import Server, free_ports

LIMIT = 64
PATHS = ("/v2/health/live", "/v2/health/ready", "/metrics")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
REQUEST = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONNECTIONS = {
    "nothing": b"",
    "half a request line": b"GET /v2/health/live HT",
    "half a preface": PREFACE[:10],
    "a preface": PREFACE,
    "a request": REQUEST % b"/v2/health/live",
    "requests whose answers are not read": REQUEST % b"/metrics" * 100,
}
HELD = [b"", b"GET /v2/health/live HT", PREFACE[:10], PREFACE]


@contextlib.contextmanager
def held(port: int, count: int, contents: Sequence[bytes] = HELD) -> Iterator[list[socket.socket]]:
    """Open `count` connections; each sends one of the contents."""
    with contextlib.ExitStack() as stack:
        connections = []
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            connections.append(stack.enter_context(connection))
            connection.sendall(contents[number % len(contents)])
        yield connections


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has sent its last byte."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def ask(port: int, path: str, seconds: float = 30) -> int:
    """The status of a GET on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


FRONTS = pytest.mark.parametrize("fast_http", [True, False], ids=["own front", "Granian"])


@FRONTS
@pytest.mark.parametrize("held_by", CONNECTIONS)
def test_held_connections_make_room_for_newcomers(
    start_server: Callable[..., Server], held_by: str, fast_http: bool
) -> None:
    server = start_server(max_connections=LIMIT, fast_http=fast_http)
    body = b"content-type: application/octet-stream\r\ncontent-length: 784\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + body + bytes(783))
        with held(server.http_port, 2 * LIMIT, [CONNECTIONS[held_by]]):
            for _ in range(10):
                assert ask(server.http_port, "/v2/health/live") == 200
        slow.sendall(b"\0")  # a request that is in flight is left alone
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    assert 'mnist_http_connections_closed_total{reason="displaced"}' in (
        server.get("/metrics")[1].decode()
    )
    assert server.stop() == 0


@FRONTS
def test_half_sent_bodies_leave_half_of_the_places_to_others(
    start_server: Callable[..., Server], fast_http: bool
) -> None:
    """They would hold their places for 600 s; some trickle."""
    server = start_server(max_connections=LIMIT, body_timeout=600, fast_http=fast_http)
    begin = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/octet-stream\r\n"
    )
    kinds = [
        begin + b"content-length: 784\r\n\r\n" + bytes(500),  # read whole
        begin + b"content-length: 784\r\nexpect: 100-continue\r\n\r\n",
        begin + b"content-length: 78400\r\n\r\n" + bytes(500),
        begin + b"transfer-encoding: chunked\r\n\r\n" + b"1f4\r\n" + bytes(250),
    ]
    with held(server.http_port, 2 * LIMIT, kinds) as connections:
        for _ in range(20):
            assert ask(server.http_port, "/v2/health/live") == 200
            status, answer = server.post("/predict", bytes(784), "application/octet-stream")
            assert (status, len(answer["predictions"])) == (200, 1)
            for connection in connections[::2]:
                with contextlib.suppress(OSError):
                    connection.send(b"\0")
        refused = 0
        for connection in connections:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                refused += b"503 Service Unavailable" in connection.recv(65536)
        assert refused >= LIMIT // 2
    assert "arrives too slowly while others wait" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


@FRONTS
def test_a_connection_that_sends_no_request_is_closed(
    start_server: Callable[..., Server], fast_http: bool
) -> None:
    server = start_server(header_timeout=0.5, fast_http=fast_http)
    with held(server.http_port, 8, [b"", b"GET /v2/health/live HT", PREFACE[:10]]) as connections:
        for connection in connections:
            connection.settimeout(60)
            assert connection.recv(100) == b""
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fast_grpc", [True, False])
def test_the_health_port_answers_while_all_connections_are_held(
    start_server: Callable[..., Server], workers: int, fast_grpc: bool
) -> None:
    (health,) = free_ports(1)
    server = start_server(
        workers=workers, fast_grpc=fast_grpc, max_connections=LIMIT, health_port=health
    )
    count = LIMIT * workers * 2  # the kernel does not spread them evenly
    with held(server.http_port, count), held(server.grpc_port, count), held(health, 100):
        for _ in range(10 * workers):
            assert [ask(health, path) for path in PATHS] == [200, 200, 200]
        ports = ["--http-port", str(server.http_port), "--grpc-port", str(server.grpc_port)]
        assert probe([*ports, "--health-port", str(health)]) == 0
    server.wait_until(server.is_ready)
    assert server.stop() == 0


def test_the_health_port_answers_without_a_free_descriptor(
    start_server: Callable[..., Server],
) -> None:
    (health,) = free_ports(1)
    server = start_server(health_port=health)
    (worker,) = server.worker_pids()
    in_use = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (in_use + 20, hard))
    said = "New connections wait: Too many open files"
    with held(server.http_port, 40), held(server.grpc_port, 40):
        server.wait_until(lambda: said in server.log.read_text())
        for _ in range(10):
            assert [ask(health, path) for path in PATHS[:2]] == [200, 200]
            assert ask(health, "/metrics") in (200, 503)  # they are read from files
    server.wait_until(lambda: ask(health, "/metrics") == 200)
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


def test_connections_are_bounded_by_the_descriptors(start_server: Callable[..., Server]) -> None:
    (health,) = free_ports(1)
    limit = 200
    # A shell of its own: a hard limit that is lowered cannot be raised again.
    server = start_server(
        health_port=health, prefix=["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
    )
    (worker,) = server.worker_pids()
    assert "max_connections is 50 instead of 1024" in server.log.read_text()
    with held(server.http_port, limit), held(server.grpc_port, limit) as calls:
        # The gRPC front answers those above the limit with GOAWAY, and closes them a second later.
        server.wait_until(lambda: sum(map(is_closed, calls)) >= limit - 50)
        descriptors = Path(f"/proc/{worker}/fd")
        server.wait_until(lambda: len(list(descriptors.iterdir())) < limit - 20)
        for _ in range(10):
            assert [ask(health, path) for path in PATHS] == [200, 200, 200]
    assert server.stop() == 0


def test_the_health_port_is_honest(start_server: Callable[..., Server], tmp_path: Path) -> None:
    (health,) = free_ports(1)
    server = start_server(tmp_path, ready=False, health_port=health, drain_seconds=300)

    def is_live() -> bool:
        try:
            return ask(health, "/v2/health/live") == 200
        except OSError:
            return False

    server.wait_until(is_live)
    assert ask(health, "/v2/health/ready") == 503
    server.process.terminate()
    server.wait_until(lambda: b"stopping" in server.get("/v2/health/ready")[1])
    assert ask(health, "/v2/health/live") == 200
    assert ask(health, "/v2/health/ready") == 503
    server.process.kill()


def test_workers_that_are_replaced_do_not_seem_unready(start_server: Callable[..., Server]) -> None:
    (health,) = free_ports(1)
    server = start_server(workers=2, health_port=health)
    before = set(server.worker_pids())
    server.process.send_signal(signal.SIGHUP)

    def all_replaced() -> bool:
        assert ask(health, "/v2/health/ready") == 200
        return len(server.worker_pids()) == 2 and not before & set(server.worker_pids())

    server.wait_until(all_replaced, 120)
    assert server.stop() == 0


def test_a_health_port_in_use_is_refused_at_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(tmp_path, tmp_path, health_port=taken.getsockname()[1])
        assert server.process.wait(timeout=60) == 2
    assert "choose another health_port" in server.log.read_text()
