"""Shared by all tests: real MNIST, a real server process, one full training run."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest

# Tests and the processes that they start train small networks, which gain nothing from a second
# thread. Threads that wait do not spin: beside other work, that takes up to 18 times as long. (Read
# when torch is imported, by the tests.)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell lets jobs in the background ignore Ctrl-C, and the programs that tests start would inherit
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example may take any time: the machine may be busy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
SHIPPED_MODELS = ROOT / "models"


class Mnist(NamedTuple):
    """The 10,000 test images, uint8 [N,28,28], and their labels, uint8 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Server:
    """A real `mnist-serve` process on free ports."""

    is_grpcio = False

    def __init__(
        self,
        folder: Path,
        models: Path,
        prefix: Sequence[str] = (),
        arguments: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self.http = f"127.0.0.1:{self.http_port}"
        self.grpc = f"127.0.0.1:{self.grpc_port}"
        self.log = folder / f"serve-{self.http_port}.log"
        settings = {
            "models": models,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "log_format": "json",
        } | settings
        environ = {f"MNIST_{name.upper()}": str(value) for name, value in settings.items()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "service.cli", *arguments],
                env=os.environ | environ,
                stderr=log,
                stdout=log,
            )

    def wait_until(self, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Poll until the condition holds; after `seconds`, fail with the server's log.

        On a busy machine a server may need a minute to start.
        """
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"The condition fails; the server's log:\n{self.log.read_text()}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, bytes]:
        return self.request("GET", path)

    def post(self, path: str, body: bytes, content_type: str) -> tuple[int, Any]:
        status, answer = self.request("POST", path, body, {"content-type": content_type})
        return status, json.loads(answer)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None
    ) -> tuple[int, bytes]:
        url = f"http://{self.http}{path}"
        request = urllib.request.Request(url, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def worker_pids(self) -> list[int]:
        """Ids of the worker processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        pids = [int(pid) for pid in children.split()]
        commands = [(pid, _command(pid)) for pid in pids]
        return [
            pid for pid, each in commands if each is not None and b"resource_tracker" not in each
        ]

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def _command(pid: int) -> bytes | None:
    """The command of a process; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1; another program may take one before the caller does."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def read_mnist() -> Mnist:
    folder = ROOT / "training" / "data" / "bundled"
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    return Mnist(
        np.frombuffer(images, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)
    )


@pytest.fixture(scope="session")
def mnist() -> Mnist:
    return read_mnist()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts a server on a model repository; it stops at the end of the module.

    An idle server takes a hundredth of a core, and there would be some eighty at the end.
    """
    with starting(tmp_path_factory) as start:
        yield start


@contextlib.contextmanager
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(models: Path = SHIPPED_MODELS, *, ready: bool = True, **settings: object) -> Server:
        server = Server(tmp_path_factory.mktemp("server"), models, **settings)
        started.append(server)
        if ready:
            server.wait_until(server.is_ready)
        return server

    try:
        yield start
    finally:
        for server in started:
            server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped model and default settings, for tests that change nothing."""
    with starting(tmp_path_factory) as start:
        yield start(log_requests="all")


@pytest.fixture(scope="session", params=[True, False], ids=["own front", "grpcio"])
def grpc_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the shipped model, once per gRPC front."""
    with starting(tmp_path_factory) as start:
        server = start(log_requests="all", fast_grpc=request.param)
        server.is_grpcio = not request.param
        yield server


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`make run` in a clone, which has trained `fast` on the whole of MNIST."""
    from tests.e2e.make_run import make_run

    return make_run(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def fast_run(make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The training of `make run`, with its model as the only one of a repository."""
    from tests.training.runs import fast_run_of

    return fast_run_of(make_run.tree, make_run.output, tmp_path_factory.mktemp("fast"))
