"""python -m benchmarks.traces: what tracing costs per request.

Three servers, without traces, with the default share of 1 % and with all requests traced, get the
same load over HTTP in turns. The figure is the CPU time of a worker per request, all its threads
together, as a ratio to the server without traces in the same round. A collector takes the traces.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.load import wrk
from benchmarks.paths import ROOT
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, free_ports, pinned
from benchmarks.wire_formats import Body

PICTURE = Body((ROOT / "docs" / "seven.png").read_bytes(), (("content-type", "image/png"),))
KINDS = {
    "off": {},
    "1 %": {"MNIST_TRACES": "true"},
    "100 %": {"MNIST_TRACES": "true", "MNIST_TRACES_SAMPLE": "1"},
}
_CONNECTIONS = 16


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server:
    """One server with one worker, on a core of its own."""

    def __init__(self, settings: dict[str, str], collector: str, log: Path) -> None:
        http_port, grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{http_port}"
        environment = {
            "MNIST_HTTP_PORT": str(http_port),
            "MNIST_GRPC_PORT": str(grpc_port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            **settings,
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (this tree's server)
                pinned([sys.executable, "-m", "service.cli"], SERVER_CORE),
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
            )
        while not self._is_ready():
            if self._process.poll() is not None:
                raise SystemExit(f"The server does not start: {log.read_text()}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready") as answer:  # noqa: S310 (our own server)
                return bool(answer.status == 200)
        except OSError:
            return False

    def cpu_seconds(self) -> float:
        """CPU time of all threads of all processes below the supervisor, to the nanosecond."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        files = [file for child in children for file in Path(f"/proc/{child}/task").iterdir()]
        return sum(int((file / "schedstat").read_text().split()[0]) for file in files) / 1e9

    def microseconds(self, seconds: int, scratch: Path) -> float:
        """CPU time per request under load."""
        before = self.cpu_seconds()
        load = wrk.load(
            f"{self.url}/predict",
            PICTURE,
            connections=_CONNECTIONS,
            seconds=seconds,
            core=LOAD_CORE,
            scratch=scratch,
        )
        if load.failed:
            raise SystemExit(f"{load.failed} requests failed.")
        return 1e6 * (self.cpu_seconds() - before) / load.requests

    def stop(self) -> None:
        """Stop it, and wait for its end."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def running() -> Iterator[tuple[dict[str, Server], Path]]:
    """The servers, by what they trace, and a folder for scratch."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}"
    servers: dict[str, Server] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for number, (kind, settings) in enumerate(KINDS.items()):
                servers[kind] = Server(settings, url, folder / f"{number}.log")
            yield servers, folder
        finally:
            for server in servers.values():
                server.stop()
            collector.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the CPU time per request of each kind, and its ratio to `off`."""
    options = parser().parse_args(arguments)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with running() as (servers, folder):
        for server in servers.values():  # the first second is another load: caches, placement
            server.microseconds(1, folder)
        for _ in range(options.rounds):
            for kind, server in servers.items():
                times[kind].append(server.microseconds(options.seconds, folder))
    for kind, values in times.items():
        ratios = [value / off for value, off in zip(values, times["off"], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{kind:>6}: {statistics.median(values):6.1f} us per request, "
            f"{statistics.median(ratios):.3f} of off ({spread})"
        )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, _ = command_line(
        "benchmarks.traces", "[--rounds N] [--seconds N]", __doc__, "--rounds 20 --seconds 2"
    )
    add("--rounds", type=int, metavar="N", default=15, help="default: %(default)s")
    add("--seconds", type=int, metavar="N", default=1, help="seconds per load (default: 1)")
    return options


if __name__ == "__main__":
    sys.exit(main())
