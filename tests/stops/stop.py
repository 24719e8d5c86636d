"""One stop of a real server: start it, wait for a moment of its life, signal it, check its end."""

from __future__ import annotations

import contextlib
import enum
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import SHIPPED_MODELS, free_ports

_BLANK = bytes(784)
_LONGEST_S = 60.0  # a server that still runs then hangs
_LONGEST_START_S = 0.8  # a signal during the start comes at a random moment up to this one
_LONGEST_LOAD_S = 0.3  # the same of a load of the shipped model
_LONGEST_GAP_S = 0.05  # between two signals
_CLIENTS = 4
# What the log of a clean stop never has.
_UNCLEAN = ("Killing worker", "did not respond", "Traceback", "crash loop", "panicked")
# Nor has it this, unless the signal itself stops a worker before the supervisor has seen it.
_ENDED_FIRST = "ended unexpectedly"


class Moment(enum.Enum):
    """What the server does when the first signal comes."""

    START = "during the start"
    SERVING = "as soon as it serves"
    IDLE = "while it is idle"
    LOAD = "during a model load"
    REQUESTS = "under requests"


class Signals(enum.Enum):
    """Which signals are sent; Ctrl-C at a terminal is SIGINT to the whole process group."""

    INT_GROUP = "SIGINT to the group"
    TERM = "SIGTERM to the supervisor"
    TERM_GROUP = "SIGTERM to the group"
    INT_GROUP_THEN_TERM = "SIGINT to the group, then SIGTERM"
    TERM_THEN_INT_GROUP = "SIGTERM, then SIGINT to the group"


class Case(NamedTuple):
    """One stop; `seed` chooses the random delays, `workers` is the number of worker processes."""

    moment: Moment
    signals: Signals
    workers: int
    seed: int

    def __str__(self) -> str:
        many = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{self.signals.value} {self.moment.value}{many} (seed {self.seed})"


class Stop(NamedTuple):
    """How a stop went: seconds from the first signal to the end of the last process."""

    case: Case
    seconds: float
    problems: list[str]


def cases(count: int, seed: int) -> list[Case]:
    """Cases in random order; the first 25 have every moment with every choice of signals."""
    chance = random.Random(seed)
    kinds = [(moment, signals) for moment in Moment for signals in Signals]
    chance.shuffle(kinds)
    return [
        Case(*kinds[n % len(kinds)], workers=1 + (n % 3 == 2), seed=chance.randrange(10**6))
        for n in range(count)
    ]


def stop(case: Case, folder: Path) -> Stop:
    """Start a server with its log and its models in `folder` (empty), stop it, and judge it."""
    chance = random.Random(case.seed)
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", folder / "models" / "mnist" / "1")
    http_port, grpc_port = free_ports(2)
    log = folder / "log"
    settings = {
        "MNIST_MODELS": str(folder / "models"),
        "MNIST_HTTP_PORT": str(http_port),
        "MNIST_GRPC_PORT": str(grpc_port),
        "MNIST_WORKERS": str(case.workers),
        "MNIST_POLL_INTERVAL": "0.02",
        "MNIST_LOG_FORMAT": "text",
    }
    # Coverage has a SIGTERM handler of its own, which would answer before the server can.
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "service.cli"],
            env=environ | settings,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait(server, log, lambda: catches_sigterm(server.pid))
        with contextlib.ExitStack() as until_the_end:
            if case.moment is Moment.START:
                time.sleep(chance.uniform(0, _LONGEST_START_S))
            else:
                _wait(server, log, lambda: log.read_text().count("Serving mnist") == case.workers)
            if case.moment is Moment.IDLE:
                time.sleep(chance.uniform(0.1, 0.3))
            elif case.moment is Moment.LOAD:
                _publish(folder / "models" / "mnist")
                time.sleep(chance.uniform(0, _LONGEST_LOAD_S))
            elif case.moment is Moment.REQUESTS:
                until_the_end.enter_context(_requests(http_port, grpc_port))
                time.sleep(chance.uniform(0.1, 0.3))
            began = time.monotonic()
            _signal(server, case.signals, chance.uniform(0, _LONGEST_GAP_S))
            problems = []
            try:
                status = server.wait(_LONGEST_S)
                if status != 0:
                    problems.append(f"exit status {status}")
            except subprocess.TimeoutExpired:
                problems.append(f"still running after {_LONGEST_S:.0f} s")
            seconds = time.monotonic() - began
        survivors = live_processes(server.pid)
        if survivors:
            problems.append(f"processes that survive the supervisor: {survivors}")
        text = log.read_text()
        unclean = (*_UNCLEAN, *[_ENDED_FIRST] * (case.signals is not Signals.TERM_GROUP))
        problems += [f"{words!r} in the log" for words in unclean if words in text]
        return Stop(case, seconds, [*problems, text] if problems else [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _signal(server: subprocess.Popen[bytes], signals: Signals, gap_s: float) -> None:
    def send(number: signal.Signals, *, group: bool) -> None:
        if server.poll() is None:  # else its number may be another process's
            (os.killpg if group else os.kill)(server.pid, number)

    match signals:
        case Signals.INT_GROUP:
            send(signal.SIGINT, group=True)
        case Signals.TERM:
            send(signal.SIGTERM, group=False)
        case Signals.TERM_GROUP:
            send(signal.SIGTERM, group=True)
        case Signals.INT_GROUP_THEN_TERM:
            send(signal.SIGINT, group=True)
            time.sleep(gap_s)
            send(signal.SIGTERM, group=False)
        case Signals.TERM_THEN_INT_GROUP:
            send(signal.SIGTERM, group=False)
            time.sleep(gap_s)
            send(signal.SIGINT, group=True)


def _wait(server: subprocess.Popen[bytes], log: Path, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONGEST_S
    while not condition():
        if server.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"The server does not start:\n{log.read_text()}")
        time.sleep(0.005)


def catches_sigterm(pid: int) -> bool:
    """Whether Python has a handler for SIGTERM; before, the kernel ends the process by it."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def live_processes(group: int) -> list[str]:
    """Command lines of the live processes of a process group."""
    alive = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgrp) == group and state != "Z":
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    alive.append(f"{folder.name} {command.strip()}")
    return alive


def _publish(model: Path) -> None:
    """Publish version 2 by rename, as mnist-train does."""
    shutil.copytree(model / "1", model / ".tmp-2")
    (model / ".tmp-2").rename(model / "2")


@contextlib.contextmanager
def _requests(http_port: int, grpc_port: int) -> Iterator[None]:
    """Clients that send requests over HTTP and gRPC until the server is gone."""
    done = threading.Event()
    body = (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"
    )
    body += b"content-length: 784\r\n\r\n" + _BLANK

    def over_http() -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", http_port), timeout=5) as connection,
        ):
            while not done.is_set():
                connection.sendall(body)
                if not connection.recv(65536):
                    return

    def over_grpc() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            stub = digits_pb2_grpc.DigitClassifierStub(channel)
            while not done.is_set():
                try:
                    stub.Predict(digits_pb2.PredictRequest(pixels=_BLANK), timeout=5)
                except grpc.RpcError:
                    return

    threads = [threading.Thread(target=t) for t in [over_http] * _CLIENTS + [over_grpc] * _CLIENTS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
