"""Bounds the memory of outputs between the model and the socket.

A request of 100 bytes may have outputs of megabytes. They exist from the run until their answer is
encoded, and long ones are encoded in a thread, one at a time, while the model keeps running. So the
outputs of answered requests are counted until they are freed, and while they and the answers that
wait for their clients have too many bytes, models whose outputs are not small take no further
batch. Encoding frees outputs. Clients that take their answers too slowly lose them (`Budget`).

Parts of a request that is not answered yet do not count: only further runs free these.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod

from service.core.budget import Budget
from service.core.datatypes import BYTES, DTYPES, Array
from service.core.tensors import TensorSpec

# A run with fewer bytes than this is not counted.
_SMALL = 256 * 1024
# A model that waited for this long takes a batch, even if outputs are never freed.
_LONGEST_WAIT_S = 0.5


def row_bytes(outputs: Sequence[TensorSpec]) -> int:
    """Bytes of one row of a batched model's outputs; 0 if their size is not fixed."""
    return _bytes(outputs, first=1)


def outputs_are_small(outputs: Sequence[TensorSpec], rows: int) -> bool:
    """Whether the outputs of a run need no count. It has up to `rows` rows; 0 for no batching."""
    return 0 < (_bytes(outputs, 1) * rows if rows else _bytes(outputs, 0)) <= _SMALL


def _bytes(outputs: Sequence[TensorSpec], first: int) -> int:
    size = 0
    for spec in outputs:
        own = spec.shape[first:]
        if not spec.has_rank or spec.datatype == BYTES or any(length < 0 for length in own):
            return 0
        size += prod(own) * DTYPES[spec.datatype].itemsize
    return size


class _Reference(weakref.ref[Array]):
    """A reference to an array that remembers its bytes."""

    __slots__ = ("size",)

    size: int


class HeldOutputs:
    """The outputs of answered requests that are not encoded yet.

    No batch is taken while they and the answers of `budget` have more than `most` bytes, which is
    the budget's limit. One answer may have as many, and one run of joined requests half of them.
    Lives on one event loop; arrays may be freed on any thread.
    """

    def __init__(self, budget: Budget) -> None:
        self.most = budget.limit
        self._budget = budget
        budget.answer_closed = self._wake_soon
        self._bytes = 0
        self._references: dict[int, _Reference] = {}
        self._freed: deque[int] = deque()  # sizes, from any thread
        self._waiting: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_overdue = False  # while a turn happens that waited for too long

    @property
    def bytes(self) -> int:
        """Bytes that are held now."""
        while self._freed:
            self._bytes -= self._freed.popleft()
        return self._bytes

    def hold(self, outputs: Sequence[Array]) -> int:
        """Count the outputs of a request until they are freed; returns their bytes."""
        total = 0
        for array in outputs:
            reference = _Reference(array, self._free)
            reference.size = array.nbytes
            self._references[id(reference)] = reference
            total += array.nbytes
        self._bytes += total
        return total

    def _free(self, reference: _Reference) -> None:
        # On any thread, in the midst of other code: nothing here may wait for a lock.
        self._references.pop(id(reference), None)
        self._freed.append(reference.size)
        self._wake_soon()

    def _wake_soon(self) -> None:
        loop = self._loop
        if self._waiting and loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._wake)

    def must_wait(self, turn: Callable[[], None]) -> bool:
        """Whether a batch may not be taken now; if so, `turn` is called when it may."""
        if self._fit() or self._is_overdue:
            return False
        self._loop = loop = asyncio.get_running_loop()
        if turn not in self._waiting:
            self._waiting[turn] = loop.call_later(_LONGEST_WAIT_S, self._wait_no_longer, turn)
        if not self._fit():
            if self.bytes <= self.most:
                self._budget.run_short()
            return True
        # An array was freed after the first look, when no turn was registered to be called.
        self._waiting.pop(turn).cancel()
        return False

    def _fit(self) -> bool:
        return self.bytes + self._budget.answers <= self.most

    def _wake(self) -> None:
        if self._fit():
            for turn in list(self._waiting):
                self._let(turn)

    def _wait_no_longer(self, turn: Callable[[], None]) -> None:
        self._is_overdue = True
        try:
            self._let(turn)
        finally:
            self._is_overdue = False

    def _let(self, turn: Callable[[], None]) -> None:
        self._waiting.pop(turn).cancel()
        turn()
