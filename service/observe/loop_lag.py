"""Measures how late the event loop runs, and says what held it.

A timer of the loop records its own lateness 10 times a second. A thread looks at that timer: while
it is overdue, it notes what the thread of the loop is doing. Neither costs a request anything. When
the loop runs again after more than 100 ms, one line says how long it was held, where, and for how
much of that time it computed. A loop that did not compute waited: for a core, for Python's global
lock, or for a call that blocks.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

BEAT_S = 0.1
LONG_S = 0.1  # a loop that is this late is worth a line
_OVERDUE_S = 0.05  # from here on the thread looks at the loop
_HANGS_S = 1.0  # from here on it does not wait for the loop to return
_FRAMES = 3


class LagMonitor:
    """Watches the running event loop. `observe` gets its lateness in seconds, at each beat.

    `code` is the folder whose functions are looked for, `reminder_s` the time between two lines.
    """

    def __init__(
        self,
        observe: Callable[[float], None],
        code: Path = Path(__file__).parents[1],
        reminder_s: float = 10.0,
    ) -> None:
        self._observe = observe
        self._code = str(code)
        self._reminder_s = reminder_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._where = ""
        self._runner_depth = 0
        self._silent_until = 0.0
        self._left_out = 0
        self._stopped = threading.Event()
        self._expect_beat()
        threading.Thread(target=self._watch, name="lag", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        self._stopped.set()

    def _expect_beat(self) -> None:
        self._cpu_s, self._process_cpu_s = time.thread_time(), time.process_time()
        self._due = time.monotonic() + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        # What is below this on the stack runs the loop, and is there when it is idle too.
        self._runner_depth = len(list(_outwards(sys._getframe(1))))
        late_s = max(0.0, time.monotonic() - self._due)
        self._observe(late_s)
        if late_s > LONG_S:
            self._report(late_s)
        self._where = ""
        self._expect_beat()

    def _report(self, late_s: float) -> None:
        now = time.monotonic()
        if now < self._silent_until:
            self._left_out += 1
            return
        cpu_s = time.thread_time() - self._cpu_s
        others_s = max(0.0, time.process_time() - self._process_cpu_s - cpu_s)
        log.warning(
            "The event loop was held for %d ms; it computed for %d ms, other threads for %d ms%s."
            "%s",
            late_s * 1000,
            cpu_s * 1000,
            others_s * 1000,
            f": {self._where}" if self._where else "",
            f" This happened {self._left_out} times more since the last line."
            if self._left_out
            else "",
        )
        self._silent_until, self._left_out = now + self._reminder_s, 0

    def _watch(self) -> None:
        """Note what the loop is doing while its beat is overdue. Runs in a thread of its own."""
        reported = 0.0
        while not self._stopped.wait(BEAT_S):
            due = self._due
            overdue_s = time.monotonic() - due
            if overdue_s < _OVERDUE_S:
                continue
            self._where = self._look()
            if overdue_s > _HANGS_S and due != reported:
                reported = due
                log.warning(
                    "The event loop has not run for %.1f s: %s.", overdue_s, self._where or "?"
                )

    def _look(self) -> str:
        """Where the loop is; if it is in no code of ours, where the other threads are."""
        frames = sys._current_frames()
        # With its own frame in it, this dictionary would be garbage that only the collector frees,
        # and keep what all other threads had in their hands: decoded pictures, for example.
        frames.pop(threading.get_ident(), None)
        own = list(_outwards(frames.pop(self._loop_thread, None)))
        running = own[: len(own) - self._runner_depth]
        if self._has_code(running):
            return "at " + _described(running)
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = {names.get(ident, "?"): list(_outwards(frame)) for ident, frame in frames.items()}
        busy = [
            f"{name} at {_described(stack)}"
            for name, stack in stacks.items()
            if self._has_code(stack)
        ]
        return "; ".join(busy[:_FRAMES])

    def _has_code(self, stack: list[FrameType]) -> bool:
        return any(frame.f_code.co_filename.startswith(self._code) for frame in stack)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _described(stack: list[FrameType]) -> str:
    """The innermost functions, innermost first."""
    return " < ".join(
        f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        for frame in stack[:_FRAMES]
    )
