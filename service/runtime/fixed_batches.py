"""Runs of fixed sizes on a device, with buffers there that outlive a run.

A CUDA graph replays its kernels on the addresses and shapes that it was captured with. So there is
a ladder of batch sizes, 1, 2, 4, ..., each with buffers and a graph of its own, and a batch is
padded to the next size. While the device runs one part of a long input, the next one is copied to
the other of two sets of buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import onnxruntime as ort

from service.core.datatypes import BF16, BYTES, DTYPES, Array
from service.core.tensors import TensorSpec
from service.runtime.device import DEVICE, give_way, when_gone


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def have_fixed_rows(specs: Sequence[TensorSpec]) -> bool:
    """Whether the number of rows is all that is open in these tensors, and numpy has their type."""
    return all(
        spec.datatype not in (BF16, BYTES) and spec.shape[:1] == (-1,) and -1 not in spec.shape[1:]
        for spec in specs
    )


class FixedBatches:
    """A session with buffers on `device` (ONNX Runtime's name of it) for a ladder of sizes.

    Making one runs every size, and captures it where the session has CUDA graphs enabled; it raises
    what ONNX Runtime raises if that fails. `run` may be called from any thread.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        most: int,
        device: str,
    ) -> None:
        self._most = most
        # A session with CUDA graphs must not be run from two threads, now or later.
        self._thread = ThreadPoolExecutor(1, "device")
        self._buffers: list[_Buffers] = []
        when_gone(self, partial(_release, self._thread, self._buffers))
        ladder = [*sizes(most), most]  # the largest one twice, for inputs of several parts
        for graph, size in enumerate(ladder, start=1):
            with DEVICE:
                self._buffers.append(_Buffers(session, inputs, outputs, size, device, graph))
                self._start(graph - 1).result()
            give_way()  # a request waits for one capture at most, not for all

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs, in the model's order, for all inputs, in the model's order."""
        parts: list[list[Array]] = []
        running: tuple[_Buffers, int, Future[None]] | None = None
        with DEVICE:
            try:
                for number, start in enumerate(range(0, max(1, len(inputs[0])), self._most)):
                    part = [array[start : start + self._most] for array in inputs]
                    place = self._place_for(len(part[0]), number)
                    buffers = self._buffers[place]
                    buffers.fill(part)  # while the part before this one runs
                    if running is not None:
                        parts.append(_finish(*running))
                    running = buffers, len(part[0]), self._start(place)
                assert running is not None
                parts.append(_finish(*running))
            finally:
                if running is not None:
                    wait([running[2]])  # nothing runs when another may use the device
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _place_for(self, rows: int, number: int) -> int:
        """Of the smallest buffers for so many rows; the two largest in turn, one may be in use."""
        found = next(i for i, buffers in enumerate(self._buffers) if buffers.size >= rows)
        if self._buffers[found].size < self._most:
            return found
        return len(self._buffers) - 1 - number % 2

    def _start(self, place: int) -> Future[None]:
        # By place: the thread must keep no buffers, which only the list may have (see _release).
        return self._thread.submit(_run, self._buffers, place)


class _Buffers:
    """Those of one batch size, on the host and on the device, bound to the session."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        size: int,
        device: str,
        graph: int,
    ) -> None:
        self.size = size
        self._session = session
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph))  # 0 is ONNX Runtime's own
        self._hosts = [np.zeros([size, *spec.shape[1:]], DTYPES[spec.datatype]) for spec in inputs]
        self._inputs = [_device_value(spec, size, device) for spec in inputs]
        self._outputs = [_device_value(spec, size, device) for spec in outputs]
        for spec, host, value in zip(inputs, self._hosts, self._inputs, strict=True):
            value.update_inplace(host)
            self._binding.bind_ortvalue_input(spec.name, value)
        for spec, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(spec.name, value)

    def fill(self, arrays: Sequence[Array]) -> None:
        """Copy rows to the device, zeros below them: nothing of an earlier request stays."""
        for host, value, array in zip(self._hosts, self._inputs, arrays, strict=True):
            host[: len(array)] = array
            host[len(array) :] = 0
            value.update_inplace(host)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)

    def outputs(self, rows: int) -> list[Array]:
        """Copies of the first rows."""
        return [value.numpy()[:rows].copy() for value in self._outputs]


def _run(all_buffers: list[_Buffers], place: int) -> None:
    all_buffers[place].run()


def _release(thread: ThreadPoolExecutor, all_buffers: list[_Buffers]) -> None:
    """Free what is on the device: handles of the thread, then buffers and graphs."""
    thread.shutdown()
    all_buffers.clear()


def _finish(buffers: _Buffers, rows: int, running: Future[None]) -> list[Array]:
    running.result()
    return buffers.outputs(rows)


def _device_value(spec: TensorSpec, size: int, device: str) -> ort.OrtValue:
    shape = [size, *spec.shape[1:]]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, DTYPES[spec.datatype], device)
