"""python -m benchmarks.traces: what tracing costs per request.

Three servers, without traces, with the default share of 1 % and with all requests traced, get the
same load over HTTP in turns. The figure is the CPU time of a server per request, all its threads
together, as a ratio to the server without traces in the same round. A collector takes the traces.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks import served_models
from benchmarks.check import is_ready
from benchmarks.command_line import command_line
from benchmarks.contenders import OURS
from benchmarks.load import wrk
from benchmarks.paths import ROOT
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, Server
from benchmarks.wire_formats import Body

PICTURE = Body((ROOT / "docs" / "seven.png").read_bytes(), (("content-type", "image/png"),))
KINDS = {
    "off": {},
    "1 %": {"MNIST_TRACES": "true"},
    "100 %": {"MNIST_TRACES": "true", "MNIST_TRACES_SAMPLE": "1"},
}
_CONNECTIONS = 16
_READY_WITHIN_S = 120.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def microseconds(server: Server, seconds: int, scratch: Path) -> float:
    """CPU time of the server per request under load."""
    before = server.thread_cpu_seconds()
    load = wrk.load(
        server.url("png"),
        PICTURE,
        connections=_CONNECTIONS,
        seconds=seconds,
        core=LOAD_CORE,
        scratch=scratch,
    )
    if load.failed:
        raise SystemExit(f"{load.failed} requests failed.")
    return 1e6 * (server.thread_cpu_seconds() - before) / load.requests


@contextlib.contextmanager
def running() -> Iterator[tuple[dict[str, Server], Path]]:
    """The servers, by what they trace, and a folder for scratch."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}"
    servers: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(collector.shutdown)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, (kind, settings) in enumerate(KINDS.items()):
            environment = {**OURS.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": url, **settings}
            server = servers[kind] = stack.enter_context(
                Server(
                    dataclasses.replace(OURS, name=f"ours-{number}", environment=environment),
                    models=served_models.repository("fast"),
                    venv=None,
                    scratch=folder,
                    core=SERVER_CORE,
                )
            )
            server.wait_until(partial(is_ready, server, "png"), _READY_WITHIN_S)
        yield servers, folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the CPU time per request of each kind, and its ratio to `off`."""
    options = parser().parse_args(arguments)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with running() as (servers, folder):
        for server in servers.values():  # the first second is another load: caches, placement
            microseconds(server, 1, folder)
        for _ in range(options.rounds):
            for kind, server in servers.items():
                times[kind].append(microseconds(server, options.seconds, folder))
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
