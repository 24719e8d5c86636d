"""python -m benchmarks.tls: what TLS costs the server, per request and per handshake.

Strategy: the CPU time of the server is what counts, so the load of other programs and of
the client changes little. Two servers that differ in TLS alone take turns, and a figure is the
median of the rounds. A request is one raw image, one at a time on one connection. A handshake is a
connection for one request less what the request takes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import http.client
import os
import platform
import ssl
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks import served_models
from benchmarks.check import is_ready
from benchmarks.contenders import OURS, TLS, Contender
from benchmarks.server_process import Server
from service.stubs.digits.v1.digits_pb2 import PredictRequest

_PIXELS = bytes(784)
_MESSAGE = PredictRequest(pixels=_PIXELS).SerializeToString()
_RAW = {"content-type": "application/octet-stream"}
_REQUESTS, _CONNECTIONS = 1500, 150  # per round
_READY_WITHIN_S = 180.0


class Cost(NamedTuple):
    """CPU time of the server in microseconds: medians, the last two of the rounds' differences."""

    plain: float  # of a request without TLS
    secure: float  # of one with TLS
    more: float
    handshake: float


def http_requests(server: Server, count: int) -> None:
    """Requests over one HTTP/1.1 connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    if server.access:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.http_port, timeout=60, context=server.access.context()
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
    address = f"127.0.0.1:{server.grpc_port}"
    if server.access:
        credentials = grpc.ssl_channel_credentials(server.access.ca.read_bytes())
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
            began = server.thread_cpu_seconds()
            work(server, requests)
            between = server.thread_cpu_seconds()
            for _ in range(connections):
                work(server, 1)
            end = server.thread_cpu_seconds()
            per_request = 1e6 * (between - began) / requests
            of_servers.append((per_request, 1e6 * (end - between) / connections))
        (request, connection), (secure_request, secure_connection) = of_servers
        more = secure_request - request
        handshake = secure_connection - connection - more
        samples.append(Cost(request, secure_request, more, handshake))
    return Cost(*map(statistics.median, zip(*samples[1:], strict=True)))  # the first warms up


def rows(scale: float, rounds: int) -> Iterator[str]:
    """The rows of the table."""
    for name, work, flag in (
        ("HTTP/1.1", http_requests, "true"),
        ("gRPC, own front", grpc_requests, "true"),
        ("gRPC, grpcio", grpc_requests, "false"),
    ):
        settings = {**OURS.environment, "MNIST_FAST_GRPC": flag}
        with (
            _serving(dataclasses.replace(OURS, environment=settings)) as plain,
            _serving(dataclasses.replace(OURS, environment=settings | TLS, secured=True)) as secure,
        ):
            cost = measure(plain, secure, work, scale, rounds)
            yield (
                f"| {name} | {cost.plain:.0f} | {cost.secure:.0f} | {cost.more:+.0f} | "
                f"{cost.handshake:.0f} |"
            )


@contextlib.contextmanager
def _serving(contender: Contender) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as scratch:
        models = served_models.repository("fast")
        with Server(contender, models=models, venv=None, scratch=Path(scratch)) as server:
            server.wait_until(lambda: is_ready(server, "raw"), _READY_WITHIN_S)
            yield server


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
    print("| us of CPU in the server | request | with TLS | more | handshake |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows(options.scale, options.rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
