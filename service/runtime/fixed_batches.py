"""Runs of fixed batch sizes on a device, in buffers that outlive a run.

Strategy: a CUDA graph replays its kernels on the addresses and shapes that it was captured with. So
there is a ladder of batch sizes, 1, 2, 4, ... up to the largest, each with its own buffers and its
own graph, and a batch is padded with zeros to the next size. A longer input runs in parts of the
largest size, which has two sets of buffers: while the device runs one part, the next part is copied
into the other set.
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


def sizes(largest: int) -> list[int]:
    """The powers of two below `largest`, and `largest`."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def have_fixed_rows(specs: Sequence[TensorSpec]) -> bool:
    """Whether only the number of rows may vary in these tensors, and numpy has their types."""
    return all(
        spec.datatype not in (BF16, BYTES) and spec.shape[:1] == (-1,) and -1 not in spec.shape[1:]
        for spec in specs
    )


class FixedBatches:
    """A session with buffers on `device` (ONNX Runtime's name) for each size up to `max_rows`.

    The constructor runs every size, and so captures it if the session has CUDA graphs enabled; it
    raises what ONNX Runtime raises if that fails. `run` may be called from any thread.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_rows: int,
        device: str,
    ) -> None:
        self._max_rows = max_rows
        # A session with CUDA graphs must always run in the same thread.
        self._thread = ThreadPoolExecutor(1, "device")
        self._buffers: list[_Buffers] = []
        when_gone(self, partial(_release, self._thread, self._buffers))
        ladder = [*sizes(max_rows), max_rows]  # the largest one twice, for inputs of several parts
        for index, size in enumerate(ladder):
            with DEVICE:
                self._buffers.append(
                    _Buffers(session, inputs, outputs, size=size, device=device, graph=index + 1)
                )
                self._start(index).result()
            give_way()  # a request waits for one capture at most, not for all

    def run(self, inputs: Sequence[Array], options: ort.RunOptions | None = None) -> list[Array]:
        """All outputs, in the model's order, for all inputs, in the model's order.

        A run that `options` terminate ends between two parts: ONNX Runtime does not look at the
        options while the device replays a CUDA graph.
        """
        outputs: list[list[Array]] = []  # of each part
        running: tuple[_Buffers, int, Future[None]] | None = None
        with DEVICE:
            try:
                for number, start in enumerate(range(0, max(1, len(inputs[0])), self._max_rows)):
                    if options is not None and options.terminate:
                        raise RuntimeError("the run was ended")
                    part = [array[start : start + self._max_rows] for array in inputs]
                    rows = len(part[0])
                    # The smallest buffers that hold the part. The two largest take turns, since
                    # the part before this one may still run in the other.
                    index = next(i for i, b in enumerate(self._buffers) if b.size >= rows)
                    if self._buffers[index].size == self._max_rows:
                        index = len(self._buffers) - 1 - number % 2
                    buffers = self._buffers[index]
                    buffers.fill(part)
                    if running is not None:
                        outputs.append(_finish(*running))
                    running = buffers, rows, self._start(index)
                assert running is not None
                outputs.append(_finish(*running))
            finally:
                if running is not None:
                    wait([running[2]])  # the run ends before another thread may use the device
        if len(outputs) == 1:
            return outputs[0]
        return [np.concatenate(column) for column in zip(*outputs, strict=True)]

    def _start(self, index: int) -> Future[None]:
        # By index: a thread pool keeps the arguments of a call, and only the list may refer to
        # buffers, so that `_release` frees them.
        return self._thread.submit(_run, self._buffers, index)


class _Buffers:
    """The buffers of one batch size, on the host and on the device, bound to the session."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        size: int,
        device: str,
        graph: int,
    ) -> None:
        self.size = size
        self._session = session
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph))  # ONNX Runtime uses 0
        self._hosts = [np.zeros([size, *spec.shape[1:]], DTYPES[spec.datatype]) for spec in inputs]
        self._inputs = [_device_value(spec, size, device) for spec in inputs]
        self._outputs = [_device_value(spec, size, device) for spec in outputs]
        for spec, host, value in zip(inputs, self._hosts, self._inputs, strict=True):
            value.update_inplace(host)
            self._binding.bind_ortvalue_input(spec.name, value)
        for spec, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(spec.name, value)

    def fill(self, arrays: Sequence[Array]) -> None:
        """Copy rows to the device, and zeros below them: no data of an earlier request stays."""
        for host, value, array in zip(self._hosts, self._inputs, arrays, strict=True):
            host[: len(array)] = array
            host[len(array) :] = 0
            value.update_inplace(host)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)

    def outputs(self, rows: int) -> list[Array]:
        """Copies of the first rows."""
        return [value.numpy()[:rows].copy() for value in self._outputs]


def _run(all_buffers: list[_Buffers], index: int) -> None:
    all_buffers[index].run()


def _release(thread: ThreadPoolExecutor, all_buffers: list[_Buffers]) -> None:
    """Free the device: first the thread, which owns handles there, then buffers and graphs."""
    thread.shutdown()
    all_buffers.clear()


def _finish(buffers: _Buffers, rows: int, running: Future[None]) -> list[Array]:
    running.result()
    return buffers.outputs(rows)


def _device_value(spec: TensorSpec, size: int, device: str) -> ort.OrtValue:
    shape = [size, *spec.shape[1:]]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, DTYPES[spec.datatype], device)
