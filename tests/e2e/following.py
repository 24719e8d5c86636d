"""Follows a page of docs/ as a reader does: saves its files, runs its commands and servers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, SHIPPED_MODELS, Server, free_ports

DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
# Training is shown, not measured, here.
SHORT = " --epochs 1 --train-limit 500 --validation-size 200"
# Commands that run until they are stopped.
SERVERS = ("mnist-serve", "envoy", "uvicorn")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w-]+\.(?:py|yaml))`")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file that the sentence before it names."""

    language: str
    text: str
    file: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        files = _FILE.findall(before) if before.endswith((":", ".")) else []
        found.append(Block(match[1], match[2], files[0] if files else None))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block for a shell, each on one line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


class Reader:
    """Follows pages in a folder, with ports of its own in place of 8000, 8001, 8002 and 8443."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        self.folder = folder
        self.http, self.grpc, self.health, self.tls = free_ports(4)
        if server is not None:
            self.http, self.grpc = server.http_port, server.grpc_port
        self.environ = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MNIST_HTTP_PORT": str(self.http),
            "MNIST_GRPC_PORT": str(self.grpc),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "docs").mkdir()
        shutil.copy(DOCS / "seven.png", folder / "docs")
        shutil.copytree(SHIPPED_MODELS, folder / "models")

    def here(self, text: str) -> str:
        """A text with the ports of this reader."""
        ports = {8000: self.http, 8001: self.grpc, 8002: self.health, 8443: self.tls}
        for port, mine in ports.items():
            before = r"127\.0\.0\.1:|port_value: |--port |--health-port "
            text = re.sub(rf"({before}){port}\b", rf"\g<1>{mine}", text)
        return text.replace("mnist-predict ", f"mnist-predict --address 127.0.0.1:{self.http} ")

    def follow(self, page: str, left_out: tuple[str, ...] = ()) -> list[str]:
        """Do what a page says. Returns what each command and snippet printed.

        Commands and blocks that begin with one of `left_out` are not run.
        """
        printed = []
        for block in blocks(DOCS / page):
            text = self.here(block.text)
            if text.startswith(left_out):
                continue
            if block.file is not None:
                (self.folder / block.file).write_text(text)
            elif block.language == "sh":
                for command in commands(block):
                    if not command.startswith(left_out):
                        printed.append(self.run(self.here(command)))
            elif block.language == "python":
                printed.append(self._output([sys.executable, "-c", text]))
            elif block.language == "js":
                printed.append(self._output(["node", "--input-type=module", "-e", text]))
        return printed

    def run(self, command: str) -> str:
        """Run one command, or start it if it is a server; what it printed."""
        if command.startswith("make certificates"):
            folder = self.folder / "deploy" / "secrets"
            (_, _, *arguments) = shlex.split(command)
            options = [each.partition("ARGS=")[2] for each in arguments]
            make = [sys.executable, "-m", "deploy.certificates", "--folder", str(folder)]
            return self._output([*make, *" ".join(options).split()])
        if not command.startswith(SERVERS):
            short = command.startswith("mnist-train")
            if short:  # what follows a comment would belong to it
                command = command.partition("  #")[0]
            return self._output(["bash", "-ec", command + SHORT * short])
        name = command.split(maxsplit=1)[0]
        if name in self._running:  # a page stops a server before it starts another
            _stop(self._running.pop(name))
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environ,
                stdout=file,
                stderr=file,
            )
        self._running[name] = process
        is_up = partial(self._is_listening, self.http if name == "mnist-serve" else self.tls)
        if name == "mnist-serve" and "--health-port" in command:
            is_up = partial(self._is_ready, self.health)
        elif name == "mnist-serve" and "--tls-" not in command:
            is_up = partial(self._is_ready, self.http)
        end = time.monotonic() + 180
        while not is_up():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command} does not serve:\n{log.read_text()}")
            time.sleep(0.05)
        return ""

    def stop(self) -> None:
        """Stop the servers, the last one first."""
        for process in reversed(self._running.values()):
            _stop(process)

    def _is_ready(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                return True
        except OSError:
            return False

    def _is_listening(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
