"""The supervisor: checks the settings, starts the worker processes, and stops them.

How a stop works: Ctrl-C at a terminal sends SIGINT to the supervisor and to its workers at once,
and service managers send SIGTERM to the supervisor or to all of them, sometimes after a SIGINT.
Only the supervisor decides. Its handler sets a flag, once, and is safe at any moment; the main
thread then sends SIGTERM to each worker and waits for it. A worker ignores SIGINT. It exits at once
on SIGTERM while it starts, and finishes its accepted requests afterwards (service/worker.py).

This process imports no ONNX Runtime, no gRPC and no Flask: it only checks what it can before
workers start, and then supervises them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing import connection
from multiprocessing.synchronize import Event, Lock
from pathlib import Path
from typing import Any, NamedTuple

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server import MPServer

from service.observe.logs import logging_config
from service.repository.shipped import shipped_models
from service.runtime.packages import conflicting_packages
from service.settings import Settings, SettingsError

log = logging.getLogger(__name__)

# Linux limits the path of a Unix socket to 107 bytes; `operations.replication` names its own
# after process ids.
_LONGEST_SOCKET_FOLDER = 90
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLACK_S = 5  # past stop_timeout; a worker cuts its requests off earlier, and exits


class Lifecycle(NamedTuple):
    """What the supervisor and its workers share."""

    startup_failed: Event  # set by a worker: another worker would fail in the same way
    # True before the supervisor sends SIGTERM. Without a lock, which a killed worker might hold.
    stopping: ctypes.c_bool
    speaker: Lock  # taken, for good, by the worker that logs what holds for the whole server


class Wakeup(threading.Event):
    """Wakes the supervisor's main thread: a set() ends the current wait() or the next one.

    It replaces the base class, whose set() waits for a lock that the interrupted main thread may
    itself hold. A main thread that waits on any lock also slept through the second of two signals,
    in about 1 of 75 stops. Here it reads a pipe, to which the interpreter writes for every signal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)

    def listen_to_signals(self) -> None:
        """End a wait() for every signal that has a Python handler."""
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: wait() will end anyway
            os.write(self._writes, b"!")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a set() or a signal. Granian passes no timeout."""
        os.read(self._reads, 4096)
        return True

    def clear(self) -> None:
        """Nothing to do. In the base class, a signal just before this call would be forgotten."""


class Supervisor(MPServer):
    """Granian's supervisor, with a stop that no second signal and no busy machine disturbs."""

    def __init__(self, settings: Settings) -> None:
        # Workers are forked, since a forked worker has the handler below from its first
        # instruction on; a spawned one would have none for as long as Python starts.
        if sys.platform == "linux":
            multiprocessing.set_start_method("fork", force=True)
        self._kill_after_s = int(settings.stop_timeout) + _SLACK_S
        super().__init__(
            "service.worker:Worker",
            settings.host,
            settings.http_port,
            interface=Interfaces.RSGI,
            workers=settings.workers,
            loop=Loops.uvloop if sys.platform != "win32" else Loops.auto,
            websockets=False,
            backpressure=settings.max_connections,
            log_level=LogLevels.debug if settings.log_level == "debug" else LogLevels.warning,
            log_dictconfig=logging_config(settings),
            respawn_failed_workers=True,
            workers_kill_timeout=self._kill_after_s,
        )
        self._lifecycle = Lifecycle(
            startup_failed=multiprocessing.Event(),
            stopping=multiprocessing.RawValue(ctypes.c_bool, False),
            speaker=multiprocessing.Lock(),
        )
        self.settings = settings
        self._pid = os.getpid()
        self.main_loop_interrupt: Wakeup = Wakeup()

    def run(self, state_folder: Path) -> int:
        """Serve until a signal. Returns the exit status."""
        load_worker = partial(_load_worker, self.settings, self._lifecycle, state_folder)
        try:
            if not self.interrupt_signal:
                self.serve(target_loader=load_worker, wrap_loader=False)
        except SystemExit:
            # Granian raises it if a worker ended by itself, as by a SIGTERM to the whole group.
            if not self.interrupt_signal:
                raise
        return 1 if self._lifecycle.startup_failed.is_set() else 0

    def signal_handler_interrupt(self, number: int, *_: object) -> None:
        """Stop; in a forked worker that has no handlers of its own yet, exit at once."""
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                os._exit(0)
        else:
            self.interrupt_signal = True

    def _stop_workers(self) -> None:
        """Stop all workers; kill those that are too slow.

        Granian asks `join` and `is_alive`, and its watcher threads wait for the same processes.
        When a watcher has reaped a worker but has not run since, both report a live worker, and
        Granian kills a process that no longer exists. The sentinel of a process has no such gap.
        """
        self._lifecycle.stopping.value = True
        for worker in self.wrks:
            worker.terminate()
        alive = {worker.inner.sentinel: worker for worker in self.wrks}
        end = time.monotonic() + self._kill_after_s
        while alive and (left_s := end - time.monotonic()) > 0:
            for sentinel in connection.wait(list(alive), left_s):
                del alive[sentinel]
        for worker in alive.values():
            log.warning(
                "Killing worker-%d: it did not stop within %d s.",
                worker.idx + 1,
                self._kill_after_s,
            )
            worker.kill()
        for worker in self.wrks:
            worker.join()
        self.wrks.clear()


def supervise(settings: Settings) -> int:
    """Check the settings and serve. Returns the exit status; raises SettingsError."""
    _preflight(settings)
    logging.config.dictConfig(logging_config(settings))
    if settings.models == shipped_models() and not Path("models").exists():
        log.info(
            "There is no folder ./models: serving the model that comes with the package. "
            "mnist-train publishes into ./models; restart mnist-serve to serve from there."
        )
    supervisor = Supervisor(settings)
    # From here on a stop has something to clean up.
    supervisor.main_loop_interrupt.listen_to_signals()
    for number in _SIGNALS:
        signal.signal(number, supervisor.signal_handler_interrupt)
    with tempfile.TemporaryDirectory(prefix="mnist-serve-") as folder:
        # The workers share their metrics, and the state that operators set.
        metrics, state = Path(folder, "metrics"), Path(folder, "state")
        if len(str(state)) > _LONGEST_SOCKET_FOLDER:
            raise SettingsError(
                f"{state} is too long for the path of a Unix socket; set TMPDIR to a shorter "
                "folder."
            )
        metrics.mkdir()
        state.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        status = supervisor.run(state)
        # A late second signal must not change the status: when Python ends, it gives each signal
        # its default action back, except for those that are ignored.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return status


def _load_worker(settings: Settings, lifecycle: Lifecycle, state_folder: Path) -> Any:
    """Called in the worker process, where the heavy imports happen."""
    from service.worker import Worker

    return Worker(settings, lifecycle, state_folder)


def _preflight(settings: Settings) -> None:
    """Raise SettingsError for problems that would otherwise show later, or never."""
    if not settings.models.is_dir():
        raise SettingsError(
            f"The model repository {settings.models.resolve()} does not exist. "
            "Train a model with mnist-train, or choose another folder with --models."
        )
    if conflict := conflicting_packages():
        raise SettingsError(conflict)
    check_ports_free(settings)


def check_ports_free(settings: Settings) -> None:
    """Raise SettingsError if one of the ports cannot be opened, or another process has it open."""
    # The workers share their ports (SO_REUSEPORT), so a second server on the same port would not
    # fail: it would silently receive half of the requests. Binding without that option fails.
    for name, port in (("http_port", settings.http_port), ("grpc_port", settings.grpc_port)):
        try:
            addresses = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = addresses[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, ValueError) as error:  # ValueError: a part of the host name is too long
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(
                f"Cannot listen on {settings.host} port {port}: {reason}. "
                f"Stop the program that uses it, or choose another {name}."
            ) from None
