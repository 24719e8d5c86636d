"""Two servers that start at the same moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import SHIPPED_MODELS, free_ports


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_one_of_several_servers_that_start_together_gets_the_port(
    tmp_path: Path, hosts: tuple[str, str]
) -> None:
    http_port, grpc_port = free_ports(2)
    environ = os.environ | {
        "MNIST_MODELS": str(SHIPPED_MODELS),
        "MNIST_HTTP_PORT": str(http_port),
        "MNIST_GRPC_PORT": str(grpc_port),
    }
    servers = []
    logs = [tmp_path / str(number) for number in range(4)]
    for number, log in enumerate(logs):
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "--host", hosts[number % 2]],
                env=environ,
                stdout=output,
                stderr=output,
            )
        servers.append(server)
    try:
        end = time.monotonic() + 60
        while sum(server.poll() is None for server in servers) > 1:
            assert time.monotonic() < end, [log.read_text() for log in logs]
            time.sleep(0.02)
        while True:
            try:
                url = f"http://127.0.0.1:{http_port}/v2/health/ready"
                urllib.request.urlopen(url, timeout=10).close()
                break
            except OSError:
                assert time.monotonic() < end, [log.read_text() for log in logs]
                time.sleep(0.05)
        statuses = [server.poll() for server in servers]
        assert sorted(statuses, key=str) == [2, 2, 2, None]
        for status, log in zip(statuses, logs, strict=True):
            refused = "Stop the program that uses it, or choose another http_port."
            assert (refused in log.read_text()) == (status == 2)
    finally:
        for server in servers:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
    assert [server.wait(timeout=60) for server in servers].count(0) == 1
