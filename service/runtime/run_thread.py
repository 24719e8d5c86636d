"""The thread in which the runs of one model happen.

Strategy: a model has a thread of its own, so that one whose runs do not end takes no thread from
others. The scheduler shares the cores equally among threads, and the event loop is one thread among
those of all models: with four models of 60 ms on two cores, half of the health checks took more
than 50 ms. So a thread whose run took long gives way to the event loop from then on. One with short
runs does not: at thousands of runs a second the event loop is itself busy, and would starve it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_LONG_S = 0.01  # of CPU time
_NICENESS = 10  # a tenth of the weight of a thread that has 0

P = ParamSpec("P")
T = TypeVar("T")


class RunThread(ThreadPoolExecutor):
    """An executor of one thread, which starts with the first call and ends with this object."""

    def __init__(self, name: str) -> None:
        super().__init__(1, thread_name_prefix=name)
        # Elsewhere than on Linux, threads have no priority of their own.
        self._gives_way = sys.platform != "linux"
        self._began = 0.0  # the current run, in CPU time of the thread

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in the thread."""
        if self._gives_way:
            return super().submit(call, *args, **kwargs)
        return super().submit(self._timed, call, *args, **kwargs)

    def _timed(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._began = time.thread_time()
        try:
            return call(*args, **kwargs)
        finally:
            self.next_run()

    def next_run(self) -> None:
        """Tell two runs of one call apart; called in the thread."""
        now = time.thread_time()
        if now - self._began > _LONG_S and not self._gives_way:
            self._gives_way = True
            with contextlib.suppress(OSError):  # a sandbox may not allow it
                thread = threading.get_native_id()
                niceness = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, niceness + _NICENESS)
        self._began = now
