"""Runs of fixed sizes on a device, with buffers there that outlive a run.

A CUDA graph replays its kernels on the addresses and shapes that it was captured with. So there is
a ladder of batch sizes, 1, 2, 4, ..., each with buffers and a graph of its own, and a batch is
padded to the next size. While the device runs one part of a long input, the next one is copied to
the other of two sets of buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort

from service.core.datatypes import BF16, BYTES, DTYPES, Array
from service.core.tensors import TensorSpec

# No other thread may use the device while one captures a graph, or the capture fails.
_DEVICE = threading.Lock()


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
        ladder = [*sizes(most), most]  # the largest one twice, for inputs of several parts
        with _DEVICE:
            self._buffers = [
                _Buffers(session, inputs, outputs, size, device, graph)
                for graph, size in enumerate(ladder, start=1)
            ]
            for buffers in self._buffers:
                self._thread.submit(buffers.run).result()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs, in the model's order, for all inputs, in the model's order."""
        parts: list[list[Array]] = []
        running: tuple[_Buffers, int, Future[None]] | None = None
        with _DEVICE:
            for number, start in enumerate(range(0, max(1, len(inputs[0])), self._most)):
                part = [array[start : start + self._most] for array in inputs]
                buffers = self._buffers_for(len(part[0]), number)
                buffers.fill(part)  # while the part before this one runs
                if running is not None:
                    parts.append(_finish(*running))
                running = buffers, len(part[0]), self._thread.submit(buffers.run)
            assert running is not None
            parts.append(_finish(*running))
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _buffers_for(self, rows: int, number: int) -> _Buffers:
        """The smallest that hold so many rows; the two largest in turn, for one may be in use."""
        found = next(buffers for buffers in self._buffers if buffers.size >= rows)
        return self._buffers[-1 - number % 2] if found.size == self._most else found


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
        self._hosts = [_host_array(spec, size) for spec in inputs]
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


def _finish(buffers: _Buffers, rows: int, running: Future[None]) -> list[Array]:
    running.result()
    return buffers.outputs(rows)


def _device_value(spec: TensorSpec, size: int, device: str) -> ort.OrtValue:
    shape = [size, *spec.shape[1:]]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, DTYPES[spec.datatype], device)


def _host_array(spec: TensorSpec, size: int) -> Array:
    """Zeros to be copied from; in pinned memory where there is some, which is copied faster."""
    shape, dtype = [size, *spec.shape[1:]], DTYPES[spec.datatype]
    pinned = _pinned_memory()
    if pinned is None:
        return np.zeros(shape, dtype)
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=pinned)
    array: Array = value.numpy()  # a view, which keeps the value
    array[:] = 0
    return array


def _pinned_memory() -> Any:
    """That of a CUDA device, as far as ONNX Runtime shows it; None if it does not."""
    for device in ort.get_ep_devices():
        if "cuda" in device.ep_name.lower():
            return device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    return None
