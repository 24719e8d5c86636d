"""Makes glibc's malloc return the memory of large requests to the system.

By default a freed block raises the size from which malloc maps blocks of their own, up to 32 MiB.
Blocks below that size come from heaps, which cannot shrink while anything above in them is in use,
and each thread gets a heap of its own. docs/decisions/memory.md has the figures.

Sources: mallopt(3), proc_pid_statm(5).
"""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_OPTIONS = {
    # Blocks from this size on are unmapped when they are freed, and mapped page by page when they
    # are used, some 0.1 ms for 400 KB. Requests of up to 512 images need none.
    _M_MMAP_THRESHOLD: 512 * 1024,
    # More unused memory than this at the end of the heap is returned.
    _M_TRIM_THRESHOLD: 4 * 1024 * 1024,
    # The heap of the event loop, and one for all threads.
    _M_ARENA_MAX: 2,
}

# Requests that held more than LARGE have ended when all of them have held less than SMALL for a
# while. A process has grown when it is larger than it was by GROWN.
_LARGE_BYTES, _SMALL_BYTES, _GROWN_BYTES = 1024 * 1024, 64 * 1024, 4 * 1024 * 1024
_REST_S, _GROWN_REST_S = 1.0, 4.0


def return_memory() -> bool:
    """Set malloc's options for this process; before it starts threads. False without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has the function for the linker's sake, and it returns 0.
    return mallopt is not None and all(mallopt(name, value) for name, value in _OPTIONS.items())


def resident() -> int:
    """The bytes of memory that this process has; 0 if the system is not Linux."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


class Returns:
    """Finds out when to `trim`: once a worker that needed much memory has little to do."""

    def __init__(self, size: int, now: float) -> None:
        self._least = size
        self._most_held = 0
        self._busy_at = now

    def due(self, held: int, size: int, now: float) -> str:
        """Why it is time, or "". `held` is how many bytes requests have, in a process of `size`.

        While the process is larger than it was, as by many connections, it is time again and again:
        nothing says when they have ended.
        """
        self._least = min(self._least, size)
        self._most_held = max(self._most_held, held)
        if held >= _SMALL_BYTES:
            self._busy_at = now
        rest = now - self._busy_at
        if self._most_held > _LARGE_BYTES and rest > _REST_S:
            reason = "large requests"
        elif size > self._least + _GROWN_BYTES and rest > _GROWN_REST_S:
            reason = "growth"
        else:
            return ""
        self._most_held, self._busy_at = 0, now
        return reason


def trim(collects: bool) -> None:
    """Return the unused pages inside the heaps, too. A thread that allocates meanwhile may wait.

    A garbage collection before it empties Python's lists of free objects, which keep pages in use.
    It takes 2 ms in a worker, whose imports are frozen, and more beside a thousand connections.
    """
    if collects:
        gc.collect()
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
