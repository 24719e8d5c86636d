"""One user at a time for the GPU of this process.

ONNX Runtime captures CUDA graphs in CUDA's global mode: while one thread captures, no other thread
of the process may take memory of the device or give it back, or the capture and the other call
fail. So whoever makes a session there, runs it, or drops it, holds `DEVICE`.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import onnxruntime as ort

from service.core.datatypes import Array

DEVICE = threading.Lock()

_GIVE_WAY_S = 0.001  # long enough for a waiting thread to wake up
_to_release: SimpleQueue[Callable[[], object]] = SimpleQueue()


def give_way() -> None:
    """Let in who waits for `DEVICE`: a thread that asks for it again at once mostly gets it."""
    time.sleep(_GIVE_WAY_S)


def when_gone(owner: object, release: Callable[[], object]) -> None:
    """Once nobody has `owner`, call `release`, which must not refer to it, holding `DEVICE`.

    In a thread of its own: the garbage collector may find `owner` in any thread, even in one that
    another one, which has the lock, waits for.
    """
    _start_releasing()
    weakref.finalize(owner, _to_release.put, release).atexit = False


def wait_for_releases(seconds: float = 10.0) -> None:
    """Return when all that was gone before this call is released, or after so many seconds."""
    _start_releasing()  # where nothing was ever made, nobody would answer
    done = threading.Event()
    _to_release.put(done.set)
    done.wait(seconds)


@functools.cache
def _start_releasing() -> None:
    threading.Thread(target=_release_all, name="device-release", daemon=True).start()
    # What is on the way is not to outlive ONNX Runtime, which is torn down after this.
    atexit.register(wait_for_releases)


def _release_all() -> None:
    while True:
        release = _to_release.get()
        with DEVICE:
            release()
            del release


class OnDevice:
    """The two ways of running a session of ONNX Runtime, under the lock of the device.

    Only its list has the session, so that this is dropped when the list is cleared.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._owned = [session]
        when_gone(self, self._owned.clear)

    def run(self, names: Sequence[str], feed: dict[str, Array], options: None) -> list[Array]:
        with DEVICE:
            outputs: list[Array] = self._owned[0]._sess.run(names, feed, options)
            return outputs

    def run_with_ort_values(
        self, names: Sequence[str], feed: dict[str, ort.OrtValue]
    ) -> list[ort.OrtValue]:
        with DEVICE:
            return list(self._owned[0].run_with_ort_values(names, feed))
