"""Runs work that would hold the event loop in a thread.

Parsing, converting and encoding values one by one holds Python's global lock (GIL), so threads
do not make it faster: they only let the event loop run in between. One thread does all
conversions, one at a time, and a second one the large ones. With more, the loop would queue for
the lock behind all of them.

Python code gives up the lock when another thread asks for it (the switch interval in
service/worker.py). A call of a library holds it to its end, so such calls are kept short: long
lists are converted in parts, and JSON has a limit of its own (`max_json_bytes`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Up to this size, values that are converted one by one take less than a millisecond.
INLINE_BYTES = 32 * 1024
# JSON above this size would hold the lock for too long: the default of max_json_bytes.
MAX_JSON_BYTES = 2 * 1024 * 1024
# Values that one call of a library converts at a time, for some 0.3 ms.
PART = 16_384
# Above this size a piece of work does not share the thread of the others.
_LARGE_BYTES = 256 * 1024
# The longest pause after a piece of work. The loop needs the lock several times to answer one
# request, and would wait for a whole piece each time.
_LONGEST_PAUSE_S = 0.02


class OffLoop:
    """A thread that does one piece of work at a time, and another one for large pieces."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._large = ThreadPoolExecutor(1, thread_name_prefix=f"large-{name}")

    def __call__(
        self, work: Callable[..., T], *arguments: object, size: int = 0
    ) -> asyncio.Future[T]:
        """Start `work(*arguments)` when it is its turn; await the result.

        `size` is the bytes of its values: small pieces do not wait behind large ones.
        """
        began = 0.0

        def begin() -> T:
            nonlocal began
            began = time.perf_counter()
            return work(*arguments)

        def pause(_: Future[T]) -> None:
            if began:
                time.sleep(min(time.perf_counter() - began, _LONGEST_PAUSE_S))

        running = (self._large if size > _LARGE_BYTES else self._thread).submit(begin)
        result = asyncio.wrap_future(running)
        # After `wrap_future`, so that the loop has the result before the thread pauses.
        running.add_done_callback(pause)
        return result


off_loop = OffLoop("conversion")
