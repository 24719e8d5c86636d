"""python -m benchmarks.tls: what TLS costs the server, per request and per handshake.

Strategy: the CPU time of the worker process is what counts, so the load of other programs and of
the client changes little. Two servers that differ in TLS alone take turns, and a figure is the
median of the rounds. A request is one raw image, one at a time on one connection. A handshake is a
connection for one request less what the request takes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks.paths import ROOT
from benchmarks.server_process import free_ports
from service.stubs.digits.v1.digits_pb2 import PredictRequest

_PIXELS = bytes(784)
_MESSAGE = PredictRequest(pixels=_PIXELS).SerializeToString()
_RAW = {"content-type": "application/octet-stream"}
_REQUESTS, _CONNECTIONS = 1500, 150  # per round


class Cost(NamedTuple):
    """CPU time of the worker in microseconds: medians, the last two of the rounds' differences."""

    plain: float  # of a request without TLS
    secure: float  # of one with TLS
    more: float
    handshake: float


class Server:
    """A server with one worker; with TLS if there are certificates in a folder."""

    def __init__(self, folder: Path | None, *flags: str) -> None:
        self.http, self.grpc, self._health = free_ports(3)
        self.ca = folder / "ca.pem" if folder else None
        ports = [f"--http-port={self.http}", f"--grpc-port={self.grpc}"]
        if folder:
            flags += (f"--tls-certificate={folder}/server.pem", f"--tls-key={folder}/server.key")
        self._process = subprocess.Popen(  # noqa: S603 (this tree, in this Python)
            [sys.executable, "-m", "service.cli", *ports, f"--health-port={self._health}", *flags],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 180
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"A server does not start; run mnist-serve {' '.join(flags)}")
            time.sleep(0.05)
        pid = self._process.pid
        (self._worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._health, timeout=10)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def cpu_us(self) -> float:
        """CPU time of the worker's threads until now (proc(5), schedstat)."""
        threads = Path(f"/proc/{self._worker}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1000

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


def http_requests(server: Server, count: int) -> None:
    """Requests over one HTTP/1.1 connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=60)
    if server.ca:
        context = ssl.create_default_context(cafile=server.ca)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.http, timeout=60, context=context
        )
    with contextlib.closing(connection):
        for _ in range(count):
            connection.request("POST", "/predict", _PIXELS, _RAW)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"A request failed with {response.status}.")


def grpc_requests(server: Server, count: int) -> None:
    """Calls over one connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{server.grpc}"
    if server.ca:
        credentials = grpc.ssl_channel_credentials(server.ca.read_bytes())
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/digits.v1.DigitClassifier/Predict"
        )
        for _ in range(count):
            call(_MESSAGE, timeout=60)


def measure(
    plain: Server,
    secure: Server,
    work: Callable[[Server, int], None],
    scale: float,
    rounds: int,
) -> Cost:
    """What TLS costs; the two servers take turns."""
    requests, connections = (max(int(each * scale), 2) for each in (_REQUESTS, _CONNECTIONS))
    samples: list[Cost] = []
    for _ in range(rounds + 1):
        of_servers = []
        for server in (plain, secure):
            began = server.cpu_us()
            work(server, requests)
            between = server.cpu_us()
            for _ in range(connections):
                work(server, 1)
            per_request = (between - began) / requests
            of_servers.append((per_request, (server.cpu_us() - between) / connections))
        (request, connection), (secure_request, secure_connection) = of_servers
        more = secure_request - request
        handshake = secure_connection - connection - more
        samples.append(Cost(request, secure_request, more, handshake))
    return Cost(*map(statistics.median, zip(*samples[1:], strict=True)))  # the first warms up


def rows(scale: float, rounds: int) -> Iterator[str]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        maker = [sys.executable, "-m", "deploy.certificates", "--folder", folder]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)  # noqa: S603 (this tree)
        for name, work, flag in (
            ("HTTP/1.1", http_requests, "true"),
            ("gRPC, own front", grpc_requests, "true"),
            ("gRPC, grpcio", grpc_requests, "false"),
        ):
            plain, secure = (Server(each, f"--fast-grpc={flag}") for each in (None, Path(folder)))
            try:
                cost = measure(plain, secure, work, scale, rounds)
            finally:
                plain.stop()
                secure.stop()
            yield (
                f"| {name} | {cost.plain:.0f} | {cost.secure:.0f} | {cost.more:+.0f} | "
                f"{cost.handshake:.0f} |"
            )


def main() -> None:
    """Print a table in Markdown."""
    command_line = argparse.ArgumentParser(prog="python -m benchmarks.tls")
    command_line.add_argument("--rounds", type=int, default=15, help="(default: 15)")
    command_line.add_argument(
        "--scale", type=float, default=1.0, help="how much work a round is (default: 1)"
    )
    options = command_line.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    machine = f"{os.cpu_count()} cores ({platform.machine()}) with load {load}"
    print(f"Measured {today} on {machine}; {ssl.OPENSSL_VERSION}; {options.rounds} rounds.\n")
    print("| us of CPU in the worker | request | with TLS | more | handshake |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows(options.scale, options.rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
