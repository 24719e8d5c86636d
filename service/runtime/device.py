"""One user at a time for the GPU of this process.

Theory of operation: ONNX Runtime captures CUDA graphs in CUDA's global mode. While one thread
captures, no other thread of the process may allocate or free memory on the device, or both the
capture and the other call fail. So code that creates a session on the device, runs it, or frees it
holds the lock `DEVICE`.

Freeing is the hard part, since Python frees an object when its last reference disappears, in
whatever thread that happens, and that thread does not hold the lock.

1. An object that owns device memory keeps it in a list, and nothing else refers to it.
2. `when_gone(owner, release)` registers a finalizer for `owner`; `release` clears that list.
3. The finalizer frees nothing: it puts `release` into a queue.
4. A thread of its own takes it from the queue, acquires the lock and calls it, so the memory is
   freed under the lock.
5. `release` must not refer to `owner`, or `owner` would never be garbage-collected.

The finalizer cannot acquire the lock itself: the garbage collector may run in any thread, even in
one that the holder of the lock waits for.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import onnxruntime as ort

from service.core.datatypes import Array

DEVICE = threading.Lock()

_GIVE_WAY_S = 0.001  # long enough for a waiting thread to wake up
_releases: SimpleQueue[Callable[[], object]] = SimpleQueue()


def give_way() -> None:
    """Give waiting threads a chance: a thread that re-acquires `DEVICE` at once usually wins it."""
    time.sleep(_GIVE_WAY_S)


def when_gone(owner: object, release: Callable[[], object]) -> None:
    """Call `release` under `DEVICE` after `owner` is garbage-collected (see above)."""
    _start_releasing()
    weakref.finalize(owner, _releases.put, release).atexit = False


def wait_for_releases(seconds: float = 10.0) -> None:
    """Wait until everything that was garbage-collected before this call is released."""
    _start_releasing()  # without the thread, the wait below would never end before its time
    done = threading.Event()
    _releases.put(done.set)
    done.wait(seconds)


@functools.cache
def _start_releasing() -> None:
    threading.Thread(target=_release_all, name="device-release", daemon=True).start()
    # At exit, finish pending releases before ONNX Runtime is torn down.
    atexit.register(wait_for_releases)


def _release_all() -> None:
    while True:
        release = _releases.get()
        with DEVICE:
            release()
            del release  # else this thread would keep it, and what it refers to, until the next one


class OnDevice:
    """Runs a session of ONNX Runtime under the lock of the device."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._owned = [session]
        when_gone(self, self._owned.clear)

    def run(
        self, names: Sequence[str], feed: dict[str, Array], options: ort.RunOptions | None
    ) -> list[Array]:
        with DEVICE:
            outputs: list[Array] = self._owned[0]._sess.run(names, feed, options)
            return outputs

    def run_with_ort_values(
        self,
        names: Sequence[str],
        feed: Mapping[str, ort.OrtValue],
        options: ort.RunOptions | None = None,
    ) -> list[ort.OrtValue]:
        with DEVICE:
            return list(self._owned[0].run_with_ort_values(names, feed, options))
