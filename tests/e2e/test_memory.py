"""A worker returns the memory of large requests to the system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Mnist, Server


def resident_mb(server: Server) -> float:
    (worker,) = server.worker_pids()
    for line in Path(f"/proc/{worker}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("/proc has no resident set size.")


def test_worker_releases_the_memory_of_large_requests(
    start_server: Callable[..., Server], mnist: Mnist
) -> None:
    server = start_server()

    def growth_after(images: int) -> float:
        body = mnist.images[:images].tobytes()
        for _ in range(3):
            status, _ = server.post("/predict", body, "application/octet-stream")
            assert status == 200
        return resident_mb(server) - at_rest

    at_rest = resident_mb(server)
    # As one run each, these requests left 77 MB and 619 MB behind. In parts of 64 images, what
    # remains is the memory of one part and copies of the request and its answer. The bounds are on
    # differences because measuring coverage costs some megabytes of its own.
    assert growth_after(512) < 20
    assert growth_after(4096) < 40
