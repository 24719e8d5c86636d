"""Starting, watching and stopping a contender's processes, all of which /proc tells about.

Processes belong to a server if they descend from the one that was started, or carry its mark in
their environment: Ray's daemons, for one, leave their parent.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.settings import ROOT

_TICKS = os.sysconf("SC_CLK_TCK")
_MARK = "MNIST_BENCHMARK_RUN"
_STOP_WITHIN_S = 15.0
# One inference thread each, whatever library reads which of these.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class NotStarted(Exception):
    """A server ended, or was not ready in time; the message has the end of its log."""


class Server:
    """One contender's processes on ports of their own; making one may raise NotStarted."""

    def __init__(
        self,
        contender: Contender,
        *,
        models: Path,
        venv: Path | None,
        scratch: Path,
        workers: int = 1,
        core: int | None = None,
    ) -> None:
        self.contender = contender
        self.http_port, self.grpc_port, spare_port = free_ports(3)
        self.log = scratch / f"{contender.name}.log"
        python = venv / "bin" / "python" if venv else Path(sys.executable)
        filling = {
            "python": str(python),
            "venv": str(venv),
            "http_port": str(self.http_port),
            "grpc_port": str(self.grpc_port),
            "spare_port": str(spare_port),
            "models": str(models),
            "workers": str(workers),
            # MLServer's 0 means: in the server's own process.
            "parallel_workers": str(workers if workers > 1 else 0),
            "scratch": str(scratch),
        }
        self._mark = uuid.uuid4().hex
        environment = {
            _MARK: self._mark,
            "MODEL_PATH": str(models / "mnist" / "1" / "model.onnx"),
            "HTTP_PORT": filling["http_port"],
            "GRPC_PORT": filling["grpc_port"],
            "WORKERS": filling["workers"],
            **_ONE_THREAD,
            **{name: text.format(**filling) for name, text in contender.environment.items()},
        }
        if venv is None:
            environment["PYTHONPATH"] = str(ROOT)
        command = [part.format(**filling) for part in contender.command]
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    pinned(command, core),
                    cwd=contender.folder or ROOT,
                    env=_without_ours(os.environ) | environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise NotStarted(f"{command[0]} cannot be run: {error.strerror}") from error

    def port(self, wire: str) -> int:
        """The port that takes a wire format."""
        return self.grpc_port if wire == "grpc" else self.http_port

    def wait_until(self, ready: Callable[[], bool], within: float) -> float:
        """Seconds from the start until `ready` first holds. Raises NotStarted."""
        while not ready():
            if not self.is_running():
                raise NotStarted(f"it ended by itself: {self.last_words()}")
            if time.monotonic() - self.started > within:
                raise NotStarted(f"not ready within {within:g} seconds: {self.last_words()}")
            time.sleep(0.01)
        return time.monotonic() - self.started

    def last_words(self) -> str:
        """The end of the log, on one line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-4:] if line.strip())[-600:]

    def is_running(self) -> bool:
        """Whether the process that was started is still there."""
        return self._process.poll() is None

    def pids(self) -> list[int]:
        """The processes that are alive."""
        # Once it has ended, its number may be another process's.
        found = {self._process.pid} if self.is_running() else set()
        mark = f"{_MARK}={self._mark}".encode()
        parents: dict[int, int] = {}
        for pid in (int(each.name) for each in Path("/proc").glob("[0-9]*")):
            with suppress(OSError):
                parents[pid] = int(_stat(pid)[1])
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.add(pid)
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in found}
            grown = not children <= found
            found |= children
        return sorted(found & parents.keys())

    def cpu_seconds(self) -> float:
        """User and system time so far of all processes, those that ended included."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                fields = _stat(pid)
                total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return total / _TICKS

    def peak_rss_mb(self) -> tuple[float, float]:
        """The sum of the processes' peaks, and the largest of them. Shared pages count in each."""
        peaks = [0.0]
        for pid in self.pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks.append(int(line.split()[1]) * 1024 / 1e6)
        return sum(peaks), max(peaks)

    def rss_mb(self) -> float:
        """The sum of the processes' resident sets now."""
        pages = 0
        for pid in self.pids():
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def freeze(self) -> None:
        """Stop all processes from running, for while another contender is measured."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all processes: politely, then by force."""
        self.thaw()
        if self.is_running():
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_WITHIN_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of this server and of Python's virtual environment."""
    dropped = ("MNIST_", "PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_")
    return {name: value for name, value in environ.items() if not name.startswith(dropped)}


def pinned(command: list[str], core: int | None) -> list[str]:
    """The command, held to one core; None leaves it free."""
    return command if core is None else ["taskset", "--cpu-list", str(core), *command]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
