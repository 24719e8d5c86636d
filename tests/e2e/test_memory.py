"""The memory of a worker: large requests must not leave it large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Mnist, Server


def resident_mb(server: Server) -> float:
    (worker,) = server.worker_pids()
    for line in Path(f"/proc/{worker}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("Linux tells the resident set of every process.")


def test_large_requests_do_not_leave_a_large_worker(
    start_server: Callable[..., Server], mnist: Mnist
) -> None:
    server = start_server()

    def grown_by(images: int) -> float:
        body = mnist.images[:images].tobytes()
        for _ in range(3):
            status, _ = server.post("/predict", body, "application/octet-stream")
            assert status == 200
        return resident_mb(server) - at_rest

    at_rest = resident_mb(server)
    # Run whole, these left 77 MB and 619 MB behind. What is left is the memory of a run of 64, and
    # beyond it copies of the request and of its answer. Differences, since measuring the tests'
    # coverage costs some megabytes that a server in use does not have.
    assert grown_by(512) < 20
    assert grown_by(4096) < 40
