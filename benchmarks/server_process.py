"""Starts, observes and stops the processes of one server under test.

A process belongs to the server if it descends from the process that was started, or if its
environment has the server's mark. The mark is needed because daemons such as Ray's leave their
parent.
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

from benchmarks import access
from benchmarks.contenders import Contender
from benchmarks.paths import ROOT

# One worker and the load generator are pinned to a core each.
SERVER_CORE, LOAD_CORE = 0, 1
_TICKS = os.sysconf("SC_CLK_TCK")
_MARK = "MNIST_BENCHMARK_RUN"
_STOP_WITHIN_S, _REPEAT_SIGNAL_S = 15.0, 2.0
# One inference thread per process, whichever library reads the variable.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class NotStarted(Exception):
    """A server exited or was not ready in time; the message holds the end of its log."""


class Server:
    """The processes of one contender, with ports of its own.

    `tree` is the checkout whose code runs, ours by default; `python` is the interpreter of a server
    without a virtual environment. The constructor raises NotStarted.
    """

    def __init__(
        self,
        contender: Contender,
        *,
        models: Path,
        venv: Path | None,
        scratch: Path,
        workers: int = 1,
        core: int | None = None,
        tree: Path = ROOT,
        python: Path = Path(sys.executable),
    ) -> None:
        self.contender = contender
        self.tree = tree
        self.http_port, self.grpc_port, self.spare_port = free_ports(3)
        self.log = scratch / f"{contender.name}.log"
        self._mark = uuid.uuid4().hex
        secrets = scratch / f"{contender.name}-{self._mark}"
        self.access = access.make(secrets) if contender.secured else None
        values = {
            "python": str(venv / "bin" / "python" if venv else python),
            "venv": str(venv),
            "http_port": str(self.http_port),
            "grpc_port": str(self.grpc_port),
            "spare_port": str(self.spare_port),
            "models": str(models),
            "workers": str(workers),
            # 0 tells MLServer to infer in the server's own process.
            "parallel_workers": str(workers if workers > 1 else 0),
            "scratch": str(scratch),
            "secrets": str(secrets),
        }
        environment = {
            _MARK: self._mark,
            "MODEL_PATH": str(models / "mnist" / "1" / "model.onnx"),
            "HTTP_PORT": values["http_port"],
            "GRPC_PORT": values["grpc_port"],
            "WORKERS": values["workers"],
            **_ONE_THREAD,
            **{name: text.format(**values) for name, text in contender.environment.items()},
        }
        if venv is None:
            environment["PYTHONPATH"] = str(tree)
        command = [part.format(**values) for part in contender.command]
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 (the command of a contender in this tree)
                    pinned(command, core),
                    cwd=contender.folder or tree,
                    env=_foreign(os.environ) | environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise NotStarted(f"{command[0]} cannot be run: {error.strerror}") from error

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def port(self, wire: str) -> int:
        """The port that accepts a wire format."""
        return self.grpc_port if wire == "grpc" else self.http_port

    def url(self, wire: str) -> str:
        """The address of the endpoint of a wire format."""
        scheme = "https" if self.access else "http"
        return f"{scheme}://127.0.0.1:{self.port(wire)}{self.contender.endpoints[wire]}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What a request needs beside its own headers: the key, if there is one."""
        return self.access.headers if self.access else ()

    def wait_until(self, ready: Callable[[], bool], within: float) -> float:
        """Seconds from the start until `ready` first holds. Raises NotStarted."""
        while not ready():
            if not self.is_running():
                raise NotStarted(f"it exited: {self.log_end()}")
            if time.monotonic() - self.started > within:
                raise NotStarted(f"not ready within {within:g} seconds: {self.log_end()}")
            time.sleep(0.01)
        return time.monotonic() - self.started

    def log_end(self) -> str:
        """The last lines of the log, joined into one."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-4:] if line.strip())[-600:]

    def is_running(self) -> bool:
        """Whether the process that was started is alive."""
        return self._process.poll() is None

    def pids(self) -> list[int]:
        """The live processes of the server."""
        # The system may give the number of an exited process to another one.
        members = {self._process.pid} if self.is_running() else set()
        mark = f"{_MARK}={self._mark}".encode()
        parents: dict[int, int] = {}
        for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
            with suppress(OSError):
                parents[pid] = int(_stat(pid)[1])
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    members.add(pid)
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in members}
            grown = not children <= members
            members |= children
        return sorted(members & parents.keys())

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far, including reaped children."""
        return sum(map(process_cpu_seconds, self.pids()))

    def thread_cpu_seconds(self) -> float:
        """The same to the nanosecond, of the threads that are alive (proc(5), schedstat)."""
        nanoseconds = 0
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with suppress(OSError):  # it has ended
                    nanoseconds += int(thread.read_text().split()[0])
        return nanoseconds / 1e9

    def peak_rss_mb(self) -> tuple[float, float]:
        """The sum of the peaks and the largest peak; shared pages count in each process."""
        peaks = [0.0]
        for pid in self.pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks.append(int(line.split()[1]) * 1024 / 1e6)
        return sum(peaks), max(peaks)

    def rss_mb(self) -> float:
        """The sum of the processes' current resident sets."""
        pages = 0
        for pid in self.pids():
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def freeze(self) -> None:
        """Suspend all processes while another contender is measured."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the processes after `freeze`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Terminate the server, then kill every process that is left."""
        self.thaw()
        # Python may miss a signal that arrives just after SIGCONT: it checks for signals, then
        # waits for a lock again. So the signal is repeated.
        end = time.monotonic() + _STOP_WITHIN_S
        while self.is_running() and time.monotonic() < end:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REPEAT_SIGNAL_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def process_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its reaped children; 0 if it has ended."""
    with suppress(OSError):
        return sum(map(int, _stat(pid)[11:15])) / _TICKS  # utime, stime, cutime, cstime
    return 0.0


def machine_cpu_seconds() -> float:
    """Time that the machine's cores did not idle, of all programs and, if virtual, of others."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the command: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _foreign(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of this server and of a Python environment."""
    own = ("MNIST_", "PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_")
    return {name: value for name, value in environ.items() if not name.startswith(own)}


def pinned(command: list[str], core: int | None) -> list[str]:
    """The command, pinned to one core unless that is None."""
    return command if core is None else ["taskset", "--cpu-list", str(core), *command]


def free_ports(count: int) -> list[int]:
    """Unused TCP ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
