"""Makes glibc's malloc return the memory of large requests to the system.

By default a freed block raises the size from which malloc maps blocks of their own, up to 32 MiB.
Blocks below that size come from heaps, which cannot shrink while anything above in them is in use,
and each thread gets a heap of its own. docs/decisions/memory.md has the figures.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_OPTIONS = {
    # Blocks from this size on are unmapped when they are freed. Requests of a few images need none.
    _M_MMAP_THRESHOLD: 256 * 1024,
    # More unused memory than this at the end of the heap is returned.
    _M_TRIM_THRESHOLD: 4 * 1024 * 1024,
    # The heap of the event loop, and one for all threads.
    _M_ARENA_MAX: 2,
}


def return_memory() -> bool:
    """Set malloc's options for this process; before it starts threads. False without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has the function for the linker's sake, and it returns 0.
    return mallopt is not None and all(mallopt(name, value) for name, value in _OPTIONS.items())


def trim() -> None:
    """Return the unused pages inside the heaps, too. A thread that allocates meanwhile may wait.

    The garbage collection before it takes 2 ms in a worker, whose imports are frozen; it also
    empties Python's lists of free objects, which keep pages in use.
    """
    gc.collect()
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
