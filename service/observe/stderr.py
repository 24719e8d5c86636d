"""Writes log lines to a stream whose reader may stop reading.

A full pipe blocks the thread that writes to it, here that of the event loop. So a line is written
at once if there is room for it, as nearly always, which keeps the order of lines and loses none
when the process ends. Otherwise it waits in a queue for a thread that writes when there is room
again. If the queue is full too, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
import threading
import time
from collections import deque
from typing import TextIO

_MOST_BYTES = 1024 * 1024  # of waiting lines
_PIECE = 4096  # bytes for which a pipe that poll() calls writable has room (PIPE_BUF)
_RETRY_S = 0.01


class StderrHandler(logging.StreamHandler[TextIO]):
    """A handler of logs that never waits for the reader of its stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._pid = os.getpid()
        self._descriptor = -1
        with contextlib.suppress(OSError, ValueError):  # a stream in memory
            self._descriptor = stream.fileno()
            self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            self._is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record, or leave it to the thread. Called with the handler's lock."""
        if self._descriptor < 0:
            super().emit(record)
            return
        try:
            line = self._encoded(record)
        except Exception:
            self.handleError(record)
            return
        if self._waiting and self._pid == os.getpid():  # a forked process has no such thread
            self._enqueue(line)
        elif rest := self._write(line):
            self._pid = os.getpid()
            self._waiting.clear()
            self._waiting_bytes = self._lost = 0
            self._enqueue(rest)
            threading.Thread(target=self._write_waiting, name="log", daemon=True).start()

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + self.terminator).encode(errors="backslashreplace")

    def _enqueue(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > _MOST_BYTES:
            self._lost += 1
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)

    def _write(self, line: bytes) -> bytes:
        """Write as much of a line as there is room for; the rest is returned."""
        try:
            while line:
                if self._is_file:
                    written = os.write(self._descriptor, line)
                elif (written := self._write_piece(line[:_PIECE])) == 0:
                    break
                line = line[written:]
        except OSError:  # the reader has closed the pipe, or the disk is full
            return b""
        return line

    def _write_piece(self, piece: bytes) -> int:
        """Write a piece if there is room for it. Returns how many bytes were written."""
        if self._is_pipe and hasattr(os, "pwritev") and hasattr(os, "RWF_NOWAIT"):
            try:
                return os.pwritev(self._descriptor, [piece], -1, os.RWF_NOWAIT)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ESPIPE, errno.EINVAL, errno.ENOSYS):
                    raise
        # Another process may fill the pipe between these two calls.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return os.write(self._descriptor, piece) if poll.poll(0) else 0

    def _write_waiting(self) -> None:
        """Write the waiting lines whenever there is room, until none is left. Runs in a thread."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while True:
            poll.poll()
            self.acquire()
            try:
                while self._waiting:
                    line = self._waiting[0]
                    rest = self._write(line)
                    self._waiting_bytes -= len(line) - len(rest)
                    if rest:
                        self._waiting[0] = rest
                        break
                    self._waiting.popleft()
                if not self._waiting:
                    if not self._lost:
                        return
                    lost, self._lost = self._lost, 0
                    self._enqueue(self._line_about(lost))
            finally:
                self.release()
            time.sleep(_RETRY_S)

    def _line_about(self, lost: int) -> bytes:
        message = "%d log lines were dropped: nothing read standard error."
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, (lost,), None)
        return self._encoded(record)
