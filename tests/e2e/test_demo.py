"""Ctrl-C in `make run`, at every stage: it ends all processes, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHIPPED_MODELS, free_ports
from tests.stops.stop import catches_sigterm, live_processes

# `make run` with a program in place of the training, which takes minutes.
_WITHOUT_TRAINING = """
import sys
from clients import demo
start = demo.Steps.start
def start_other(self, module, *arguments):
    return start(self, "platform" if module == "training.commands.train" else module, *arguments)
demo.Steps.start = start_other
sys.exit(demo.main())
"""


class Demo:
    """clients.demo in a process group of its own, as at a terminal."""

    def __init__(self, folder: Path, *command: str, models: Path) -> None:
        http_port, grpc_port = free_ports(2)
        settings = {
            "MNIST_HTTP_PORT": str(http_port),
            "MNIST_GRPC_PORT": str(grpc_port),
            "MNIST_MODELS": str(models),
        }
        # Coverage has a SIGTERM handler of its own, which would answer first.
        environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environ | settings | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        while words not in self.output:
            line = self.process.stdout.readline()
            assert line, f"It ended by itself:\n{self.output}"
            self.output += line

    def interrupt(self) -> int:
        """Press Ctrl-C; the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.output += rest
        assert "Traceback" not in self.output, self.output
        assert live_processes(self.process.pid) == []
        return self.process.returncode


@pytest.fixture
def started() -> Iterator[list[Demo]]:
    demos: list[Demo] = []
    yield demos
    for demo in demos:
        for process in live_processes(demo.process.pid):
            os.kill(int(process.split()[0]), signal.SIGKILL)


@pytest.mark.parametrize("words", ["", "== Training", "Recipe fast"])
def test_ctrl_c_ends_the_training(started: list[Demo], tmp_path: Path, words: str) -> None:
    demo = Demo(tmp_path, "-m", "clients.demo", models=tmp_path)
    started.append(demo)
    while not catches_sigterm(demo.process.pid):
        assert demo.process.poll() is None
    demo.read_until(words)
    assert demo.interrupt() == 128 + signal.SIGINT
    assert list(tmp_path.glob("mnist/*")) == []  # no model is published


@pytest.mark.parametrize("words", ["== Starting", "Serving mnist", "stop with Ctrl-C"])
def test_ctrl_c_ends_the_server_with_status_0(started: list[Demo], words: str) -> None:
    demo = Demo(ROOT, "-c", _WITHOUT_TRAINING, models=SHIPPED_MODELS)
    started.append(demo)
    demo.read_until(words)
    assert demo.interrupt() == 0
