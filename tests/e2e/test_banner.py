"""mnist-serve on a terminal: a banner when it is ready, and Ctrl-C stops it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import urllib.request

import pytest

from tests.conftest import SHIPPED_MODELS, Server, free_ports


def read_until(terminal: int, words: str, seconds: float = 180.0) -> str:
    """What a terminal shows, until it has shown these words."""
    output, end = b"", time.monotonic() + seconds
    while words.encode() not in output:
        if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            pytest.fail(f"No {words!r} in:\n{output.decode()}")
        output += os.read(terminal, 65536)
    return output.decode().replace("\r\n", "\n")


def test_a_terminal_shows_where_the_server_is_once_all_workers_serve() -> None:
    http_port, grpc_port = free_ports(2)
    terminal, side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MNIST_")}
    process = subprocess.Popen(
        [
            *(
                "setsid",
                "--ctty",
                sys.executable,
                "-m",
                "service.cli",
                "--workers=2",
                f"--models={SHIPPED_MODELS}",
            ),
            *(f"--http-port={http_port}", f"--grpc-port={grpc_port}"),
        ],
        env=environ,
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    try:
        first, _, shown = read_until(terminal, "Ctrl-C stops").partition("\n\n")
        # Lines that machines get, of each worker and model, are left out.
        assert re.fullmatch(rf"  mnist-service \S+ loads the models in {SHIPPED_MODELS}", first)
        for pattern in (
            rf"^  Playground  http://127\.0\.0\.1:{http_port}/$",
            rf"^  gRPC        127\.0\.0\.1:{grpc_port}$",
            rf"^  Metrics     http://127\.0\.0\.1:{http_port}/metrics$",
            r"^  Model       mnist version \d+, 99\.\d+% of its test images right$",
            r"^  Provider    (CPU: .+|CUDA)$",
            r"^  Workers     2$",
        ):
            assert re.search(pattern, shown, re.MULTILINE), pattern
        for url in re.findall(r"http://\S+", shown):
            assert urllib.request.urlopen(url, timeout=60).status == 200
        os.write(terminal, b"\x03")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_without_a_terminal_there_is_none(server: Server) -> None:
    assert "Serving mnist version" in server.log.read_text()
    assert "Ctrl-C" not in server.log.read_text()
