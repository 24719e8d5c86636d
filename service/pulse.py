"""One worker process as the supervisor sees it: what both share, and whether the worker hangs.

Each worker counts the beats of its event loop in shared memory. A silence alone does not say that
it hangs: the loop may compute, wait for a core, or still load models. So this looks at the state
and the CPU time that the kernel has for the worker's threads (proc_pid_stat(5)).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import signal
import time
from multiprocessing.synchronize import Event, Lock, Semaphore
from pathlib import Path
from typing import NamedTuple

from granian.server.mp import WorkerProcess

log = logging.getLogger(__name__)

_SILENT_S = 5.0  # a loop that neither beats nor computes for this long hangs
# A loop that computes hangs as well, after so much CPU time. The longest things that a request can
# make it do take less than a second (runs of models are in threads). On a busy machine even that
# takes longer by the clock, but never as long as _BUSY_S.
_BUSY_CPU_S = 10.0
_BUSY_S = 60.0
_BUSY_SHARE = 0.1  # of a core; a loop that uses less during a silence does not compute
_STARVED_S = 0.2  # CPU time during a silence, below which a runnable worker waits for a core
_SILENT_START_S = 60.0  # a worker that loads and uses no CPU time for this long hangs


class Pulse(ctypes.Structure):
    """What one worker shares with the supervisor."""

    _fields_ = (
        ("beats", ctypes.c_ulong),  # by the worker's event loop; 0 before it serves
        ("has_served", ctypes.c_bool),  # by the worker: it has opened its ports
        ("is_waiting", ctypes.c_bool),  # by the worker: for a process that tries a model
        ("is_retired", ctypes.c_bool),  # a new worker serves in its place
        ("has_stuck_run", ctypes.c_bool),  # by the worker: a run of a model cannot be ended
        ("has_forerunner", ctypes.c_bool),  # by the supervisor: an old worker serves until this one
    )


class Replacements(ctypes.Structure):
    """How many workers were replaced, by the reason.

    Their loop was silent, they ended, or they had a run of a model that could not be ended.
    """

    _fields_ = (
        ("silent", ctypes.c_ulong),
        ("ended", ctypes.c_ulong),
        ("stuck_run", ctypes.c_ulong),
    )


class Lifecycle(NamedTuple):
    """What the supervisor and its workers share."""

    supervisor: int  # its process id
    startup_failed: Event  # set by a worker: another worker would fail in the same way
    # True before the supervisor sends SIGTERM. Without a lock, which a killed worker might hold.
    stopping: ctypes.c_bool
    speaker: Lock  # taken, for good, by the worker that logs what holds for the whole server
    starting: Semaphore  # one for each worker but the last to be ready, which shows the banner
    host: Lock  # taken, for good, by the worker that shows the banner
    has_greeted: ctypes.c_bool  # that worker has
    replaced: Replacements  # written by the supervisor


class WatchedProcess(WorkerProcess):
    """Granian's handle of a worker process, with the worker's pulse and the reason of its end."""

    def __init__(self, worker: WorkerProcess, pulse: Pulse) -> None:
        # Granian builds the handle and its process in one step.
        vars(self).update(vars(worker))
        self.pulse = pulse
        self.has_ended = False
        self.replace_at: float | None = None  # when it has ended, by the monotonic clock
        self.is_silent = False
        self.kill_at = float("inf")  # by the monotonic clock; set when it is retired
        self.patience_s = _SILENT_S  # the silence after which it hangs
        self._beats = -1
        self._last_beat = 0.0
        self._cpu_at_last_beat = 0.0

    def forget_silence(self) -> None:
        """Begin the current silence again."""
        self._beats = -1

    def hangs(self, now: float) -> bool:
        """Whether the loop is silent for `_SILENT_S`, or longer if it computes meanwhile.

        A loop that waits for a core does not hang. Before its first beat a worker loads models,
        which may take minutes, in threads: it hangs if none of them uses any CPU time. Time in
        which it waits for a trial of a model does not count: that has a limit of its own.
        """
        beats = self.pulse.beats
        if beats == 0:
            if self.pulse.is_waiting:
                self.forget_silence()
                return False
            cpu_s = process_cpu_s(self.inner.pid)
            if self._beats != 0 or cpu_s != self._cpu_at_last_beat:
                self._beats, self._last_beat, self._cpu_at_last_beat = 0, now, cpu_s
            self.patience_s = _SILENT_START_S
            return now - self._last_beat >= _SILENT_START_S
        if beats != self._beats:
            self._beats, self._last_beat = beats, now
            self._cpu_at_last_beat = main_thread(self.inner.pid).cpu_s
            return False
        silent_s = now - self._last_beat
        if silent_s < _SILENT_S:
            return False
        thread = main_thread(self.inner.pid)
        cpu_s = thread.cpu_s - self._cpu_at_last_beat
        if thread.is_runnable and cpu_s < _STARVED_S:
            return False
        self.patience_s = _SILENT_S
        if cpu_s >= silent_s * _BUSY_SHARE:
            self.patience_s = silent_s if cpu_s >= _BUSY_CPU_S else _BUSY_S
        return silent_s >= self.patience_s

    def retire(self, kill_after_s: float) -> None:
        """Let the worker finish its requests and exit; a new one serves already."""
        self.pulse.is_retired = True
        self.kill_at = time.monotonic() + kill_after_s
        self.terminate()  # type: ignore[no-untyped-call]

    def _watcher(self) -> None:
        """Wait for the end of the process, in a thread of its own."""
        self.inner.join()
        # The end of one that was to replace a worker is told by the supervisor.
        is_watched = self.pulse.beats or not self.pulse.has_forerunner
        if is_watched and not self.interrupt_by_parent and not self.is_silent:
            code = self.inner.exitcode
            reason = f"status {code}"
            with contextlib.suppress(ValueError):
                reason = signal.Signals(-(code or 0)).name
            log.error(
                "Worker-%d ended unexpectedly (%s); a new worker replaces it.", self.idx + 1, reason
            )
        self.has_ended = True
        self.parent.main_loop_interrupt.set()


class MainThread(NamedTuple):
    """The main thread of a process, which runs its event loop."""

    is_runnable: bool  # it runs or waits for a core
    cpu_s: float


def main_thread(pid: int) -> MainThread:
    """Not runnable and 0 s if the kernel does not say."""
    return _stat(f"{pid}/task/{pid}") or MainThread(False, 0.0)


def process_cpu_s(pid: int) -> float:
    """CPU time of all threads; NaN, which differs from itself, if the kernel does not say."""
    stat = _stat(str(pid))
    return math.nan if stat is None else stat.cpu_s


def _stat(of: str) -> MainThread | None:
    try:
        stat = Path(f"/proc/{of}/stat").read_text()
        state, *numbers = stat.rpartition(") ")[2].split()
        ticks = int(numbers[10]) + int(numbers[11])  # user and system time, proc_pid_stat(5)
        return MainThread(state == "R", ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None
