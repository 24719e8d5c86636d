"""A full TMPDIR, and no free file descriptors."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SHIPPED_MODELS, Server
from tests.faults.small_folder import ServerInSmallFolder, fill

RAW = "application/octet-stream"
BLANK = bytes(784)
# Paths and bodies of calls that change all workers.
CHANGES = [
    ("/v2/logging", b'{"log_verbose_level":1}'),
    ("/v2/repository/models/mnist/unload", b""),
    ("/v2/repository/models/mnist/load", b""),
]


@pytest.fixture
def small() -> Iterator[Path]:
    """A folder whose name is short enough for the sockets of a server."""
    with tempfile.TemporaryDirectory(prefix="small-") as folder:
        yield Path(folder)


def test_a_full_temporary_folder_costs_metrics_and_changes_by_operators_and_nothing_else(
    tmp_path: Path, small: Path
) -> None:
    server = ServerInSmallFolder(tmp_path / "log", small)
    try:
        server.wait_until(server.is_ready)
        workers = server.worker_pids()
        fill(server.small)
        for number in range(100):  # new labels, whose metrics need pages that no one has touched
            assert server.post("/predict", BLANK, RAW)[0] == 200
            assert server.get(f"/v2/models/none-{number}")[0] == 404
            server.request("DELETE" if number % 2 else "PUT", f"/v2/{number}")
        status, metrics = server.get("/metrics")
        assert status == 200
        assert b"mnist_request_seconds_count" in metrics
        # A worker that begins without space has no file at all.
        os.kill(workers[0], 9)
        server.wait_until(lambda: server.worker_pids() not in ([], workers))
        server.wait_until(server.is_ready)
        assert server.post("/predict", BLANK, RAW)[0] == 200
        server.wait_until(lambda: "Metrics are incomplete until" in server.log.read_text())
        assert server.log.read_text().count("Metrics are incomplete until") == 1
        assert server.get("/metrics")[0] == 200
        assert "SIGBUS" not in server.log.read_text()
        for change in CHANGES:  # refused whole, so that no worker differs from another
            status, answer = server.post(*change, "application/json")
            assert (status, "cannot be written" in answer["error"]) == (503, True), answer
        assert server.post("/predict", BLANK, RAW)[0] == 200
        (server.small / "filler").unlink()
        for change in CHANGES:
            assert server.post(*change, "application/json")[0] == 200
        server.wait_until(lambda: replacement_counts(server))
    finally:
        status = server.stop()
    assert status == 0


def replacement_counts(server: Server) -> bool:
    """Whether the worker that began without space now reports what it counted since."""
    server.post("/predict", BLANK, RAW)
    name = 'mnist_request_seconds_count{code="200",operation="predict",transport="http"} '
    (line,) = [x for x in server.get("/metrics")[1].decode().splitlines() if x.startswith(name)]
    return float(line.removeprefix(name)) > 100


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "models" / "mnist" / "1")
    return tmp_path / "models"


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_limit(
    start_server: Callable[..., Server],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        server = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (worker,) = server.worker_pids()
    assert resource.prlimit(worker, resource.RLIMIT_NOFILE) == (hard, hard)


def test_running_out_of_descriptors_is_logged_once_and_survived(
    start_server: Callable[..., Server], repository: Path
) -> None:
    server = start_server(repository, poll_interval=0.05)
    (worker,) = server.worker_pids()
    in_use = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (in_use + 20, in_use + 20))
    said = "New connections wait: Too many open files"
    with contextlib.ExitStack() as connections:
        for port in [server.http_port] * 40 + [server.grpc_port] * 40:
            address = ("127.0.0.1", port)
            connections.enter_context(socket.create_connection(address, timeout=120))
        server.wait_until(lambda: said in server.log.read_text())
    server.wait_until(server.is_ready)
    assert server.post("/predict", BLANK, RAW)[0] == 200
    shutil.copytree(repository / "mnist" / "1", repository / "mnist" / ".tmp-2")
    (repository / "mnist" / ".tmp-2").rename(repository / "mnist" / "2")
    server.wait_until(lambda: server.post("/predict", BLANK, RAW)[1].get("model_version") == "2")
    assert server.worker_pids() == [worker]
    lines = [line for line in server.log.read_text().splitlines() if "Too many open files" in line]
    assert len(lines) == 1, lines
    assert server.stop() == 0


def test_without_a_free_descriptor_calls_are_answered_and_everything_works_later(
    start_server: Callable[..., Server], repository: Path
) -> None:
    """On connections that are open, which is all that a client can have then."""
    server = start_server(repository, workers=2, poll_interval=0.05)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    workers = server.worker_pids()
    kept = {worker: connection_to(server, worker) for worker in workers}
    limits = {}
    for worker in workers:
        limits[worker] = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        # The lowest free number is at most how many there are.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (4, limits[worker][1]))
    statuses = {}
    for connection in kept.values():
        for method, path, body in [
            ("GET", "/metrics", b""),
            ("POST", "/v2/repository/index", b"{}"),
            *(("POST", *change) for change in CHANGES),
            ("GET", "/v2/health/ready", b""),
            ("POST", "/v2/models/mnist/infer", b"{}"),
        ]:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            statuses.setdefault(path, set()).add(answer.status)
            assert b"error" in answer.read() or answer.status == 200
        connection.request("POST", "/predict", BLANK, {"content-type": RAW})
        answer = connection.getresponse()
        assert (answer.status, b"predictions" in answer.read()) == (200, True)
    assert statuses == {
        "/metrics": {503},
        "/v2/repository/index": {503},
        **{path: {503} for path, _ in CHANGES},
        "/v2/health/ready": {200},
        "/v2/models/mnist/infer": {400},
    }
    said = "New connections wait: Too many open files"
    server.wait_until(lambda: server.log.read_text().count(said) == 2)  # one per worker
    for worker in workers:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits[worker])
    for change in CHANGES:
        assert server.post(*change, "application/json")[0] == 200
    assert server.get("/metrics")[0] == 200
    shutil.copytree(repository / "mnist" / "1", repository / "mnist" / ".tmp-2")
    (repository / "mnist" / ".tmp-2").rename(repository / "mnist" / "2")
    server.wait_until(lambda: server.post("/predict", BLANK, RAW)[1].get("model_version") == "2")
    assert server.worker_pids() == workers
    assert "Traceback" not in server.log.read_text()
    for connection in kept.values():
        connection.close()
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (0, "cannot be replaced now: Too many open files"),  # the supervisor itself has none
        (8, "ended unexpectedly (status 1)"),  # a new worker has too few
    ],
)
def test_a_worker_that_cannot_start_without_descriptors_is_started_later(
    start_server: Callable[..., Server], free: int, said: str
) -> None:
    server = start_server(workers=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    kept, killed = server.worker_pids()
    supervisor = server.process.pid
    limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path(f"/proc/{supervisor}/fd").iterdir())
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (highest + free if free else 4, limits[1]))
    os.kill(killed, 9)
    server.wait_until(lambda: said in server.log.read_text())
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 3)
    assert kept in server.worker_pids()
    assert "crash loop" not in server.log.read_text()
    assert server.stop() == 0


def connection_to(server: Server, worker: int) -> http.client.HTTPConnection:
    """A connection that this worker has accepted."""
    while True:
        before = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=120)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        if len(list(Path(f"/proc/{worker}/fd").iterdir())) > before:
            return connection
        connection.close()
