"""One ONNX model in ONNX Runtime: loaded, checked, warmed up and timed.

The execution provider is read back from the session and proved by a run, since ONNX Runtime falls
back from CUDA to the CPU with no more than a warning of its own.
"""

from __future__ import annotations

import ctypes
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from service.core.datatypes import BF16, BYTES, DTYPES, Array
from service.core.tensors import TensorSpec
from service.runtime import cuda
from service.runtime.device import DEVICE, OnDevice, wait_for_releases
from service.runtime.fixed_batches import FixedBatches, have_fixed_rows

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
BUILT_WITHOUT_CUDA = (
    f"the installed ONNX Runtime {ort.__version__} is built without CUDA; "
    "install the extra 'gpu' instead of 'cpu'"
)
_CUDA_DEVICE = "cuda"  # ONNX Runtime's name of the device
_ERRORS_ONLY = 3  # ONNX Runtime's log severity; what it warns of, we report ourselves
_WARM_UP_ROWS = 16
# Longer inputs are run in parts of so many rows: ONNX Runtime keeps the memory of its largest run
# for good, and parts of 64 are about as fast as the whole (docs/performance.md, Engine).
ROWS_OF_A_RUN = 64
# On CUDA 512 images take 2,034 us in parts of 64, 733 in parts of 256, 541 whole (`fast`, H200).
# The price is three captures more when a model is loaded, and the activations of 512 rows for good:
# a model too large for them is found out then, and runs without graphs, in parts of 64.
ROWS_OF_A_RUN_ON_CUDA = 512

# ONNX Runtime's name of a tensor's type -> the protocol's datatype.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": BF16,
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
    **{
        f"tensor({sign}int{size})": f"{sign.upper()}INT{size}"
        for sign in ("u", "")
        for size in (8, 16, 32, 64)
    },
}
_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class LoadError(Exception):
    """The model cannot be served; the message says why."""


class ProviderUnavailable(Exception):
    """The execution provider that was asked for does not work on this machine."""


class SessionOptions(NamedTuple):
    """What of the settings concerns ONNX Runtime."""

    provider: str = "auto"
    intra_op_threads: int = 1
    spinning: bool = False
    max_rows: int = ROWS_OF_A_RUN
    max_rows_on_cuda: int = ROWS_OF_A_RUN_ON_CUDA  # or `max_rows`, if that is more


class Session:
    """A warmed-up model. `run` may be called from any thread, one call at a time.

    Attributes: `inputs` and `outputs` in the model's order; `provider`, the execution provider in
    use, and `fallback`, why it is not CUDA (empty where CUDA runs or was not asked for);
    `batchable`, whether rows are independent: those of several requests may be joined along
    dimension 0, and those of one be run in parts.
    """

    def __init__(
        self, session: ort.InferenceSession, max_rows: int, device: str = "", fixed: bool = True
    ) -> None:
        """With `device`, it is run and dropped under the lock of the device.

        If `fixed`, inputs and outputs have buffers there, and runs are of fixed sizes.
        """
        self._session = OnDevice(session) if device else session
        # Not `session.run`: that checks again what we have checked, for 3 us of the small net's 31.
        self._ort_run: Callable[..., list[Array]] = (
            self._session.run if device else session._sess.run
        )
        self._max_rows = max_rows
        self.provider: str = session.get_providers()[0]
        self.fallback = ""
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._has_bfloat16 = any(s.datatype == BF16 for s in (*self.inputs, *self.outputs))
        self.batchable = all(
            spec.shape and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs)
        )
        self._fixed: FixedBatches | None = None
        if device and fixed:
            if not self.batchable or not have_fixed_rows([*self.inputs, *self.outputs]):
                raise LoadError("more than the number of rows is open in its inputs or outputs")
            self._fixed = FixedBatches(session, self.inputs, self.outputs, max_rows, device)
        self._fixed_s, self._row_s = self._warm_up()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs, in the model's order, for all inputs, in the model's order."""
        if self._fixed is not None:
            return self._fixed.run(inputs)
        if self.batchable and len(inputs[0]) > self._max_rows:
            return self._run_in_parts(inputs)
        return self._run_whole(inputs)

    def _run_in_parts(self, inputs: Sequence[Array]) -> list[Array]:
        parts = []
        for start in range(0, len(inputs[0]), self._max_rows):
            part = [array[start : start + self._max_rows] for array in inputs]
            try:
                outputs = self._run_whole(part)
            except Exception:  # the answer or the error must be the one that the whole gives
                return self._run_whole(inputs)
            if any(len(output) != len(part[0]) for output in outputs):
                # Its shapes promised a row for a row: only the whole has the right answer.
                return self._run_whole(inputs)
            parts.append(outputs)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_whole(self, inputs: Sequence[Array]) -> list[Array]:
        if self._has_bfloat16:
            return self._run_ort_values(inputs)
        feed = dict(zip(self._input_names, inputs, strict=True))
        return self._ort_run(self._output_names, feed, None)

    def _run_ort_values(self, inputs: Sequence[Array]) -> list[Array]:
        # ONNX Runtime's `run` takes numpy arrays, and numpy has no bfloat16.
        feed = {
            spec.name: _as_ort_value(spec, array)
            for spec, array in zip(self.inputs, inputs, strict=True)
        }
        return [
            _as_array(value)
            for value in self._session.run_with_ort_values(self._output_names, feed)
        ]

    def expected_seconds(self, rows: int) -> float:
        """How long a run of so many rows took when the model was warmed up, interpolated."""
        return self._fixed_s + rows * self._row_s

    def _warm_up(self) -> tuple[float, float]:
        one = self._time(1)
        if not self.batchable:
            return one, 0.0
        many = self._time(_WARM_UP_ROWS)
        per_row = max(0.0, (many - one) / (_WARM_UP_ROWS - 1))
        return max(0.0, one - per_row), per_row

    def _time(self, rows: int) -> float:
        inputs = [
            np.full(
                [rows if i == 0 and n < 0 else max(n, 1) for i, n in enumerate(spec.shape)],
                "" if spec.datatype == BYTES else 0,
                DTYPES[spec.datatype],
            )
            for spec in self.inputs
        ]
        best = float("inf")
        for _ in range(3):  # the first one allocates; the least is what the machine can do
            start = time.perf_counter()
            self.run(inputs)
            best = min(best, time.perf_counter() - start)
        return best


def load(path: Path, options: SessionOptions) -> Session:
    """Load and prove one model file.

    Raises LoadError if ONNX Runtime refuses the model or it has tensors that cannot be served,
    ProviderUnavailable if `options.provider` is cuda and CUDA does not run the model.
    """
    if options.provider == "cpu":
        return _create(path, options, [CPU])
    try:
        return _create_cuda(path, options)
    except ProviderUnavailable as error:
        if options.provider == "cuda":
            raise
        session = _create(path, options, [CPU])
        session.fallback = str(error)
        return session


def cuda_is_built_in() -> bool:
    """Whether the installed ONNX Runtime could use CUDA, if the machine has it."""
    return CUDA in ort.get_available_providers()


def _create_cuda(path: Path, options: SessionOptions) -> Session:
    if not cuda_is_built_in():
        raise ProviderUnavailable(BUILT_WITHOUT_CUDA)
    ort.preload_dlls()  # finds CUDA and cuDNN in their wheels; reports failure only below
    try:
        session = _create_on_cuda(path, options)
    except LoadError as error:
        why = cuda.what_is_missing() or cuda.in_short(str(error))
        raise ProviderUnavailable(f"CUDA does not run {path}: {why}") from error
    if session.provider != CUDA:
        raise ProviderUnavailable(f"ONNX Runtime chose {session.provider} for {path}")
    return session


def _create_on_cuda(path: Path, options: SessionOptions) -> Session:
    # With CUDA alone and fallback off, ONNX Runtime fails instead of using the CPU.
    entries = {"session.disable_cpu_ep_fallback": "1"}
    graphs = [(CUDA, {"enable_cuda_graph": "1"})]
    whole = options._replace(max_rows=max(options.max_rows, options.max_rows_on_cuda))
    try:
        return _create(path, whole, graphs, entries, _CUDA_DEVICE)
    except LoadError as error:
        why = cuda.in_short(str(error))
    session = _create(path, options, [CUDA], entries, _CUDA_DEVICE, fixed=False)
    log.warning("%s runs on CUDA without CUDA graphs, and slower: %s.", path, why)
    return session


def _create(
    path: Path,
    options: SessionOptions,
    providers: Sequence[str | tuple[str, dict[str, str]]],
    entries: dict[str, str] | None = None,
    device: str = "",
    fixed: bool = True,
) -> Session:
    made = ort.SessionOptions()
    made.intra_op_num_threads = options.intra_op_threads
    made.inter_op_num_threads = 1
    made.enable_mem_pattern = False  # no faster, and 4 MB more at 64 rows
    made.log_severity_level = _ERRORS_ONLY
    made.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    for key, value in (entries or {}).items():
        made.add_session_config_entry(key, value)

    def session() -> ort.InferenceSession:
        # The fallback would be to other providers, with no more than a print().
        return ort.InferenceSession(
            str(path), made, providers=list(providers), enable_fallback=False
        )

    try:
        if not device:
            return Session(session(), options.max_rows)
        with DEVICE:
            on_device = [session()]
        return Session(on_device.pop(), options.max_rows, device, fixed)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if device:
            with DEVICE:  # its frames have what is to be dropped
                traceback.clear_frames(error.__traceback__)
            wait_for_releases()  # another try needs the memory
        if isinstance(error, LoadError):
            raise
        raise LoadError(" ".join(str(error).split())) from error


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise LoadError(f"tensor '{node.name}' is a {node.type}, which is not served")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, _DATATYPES[node.type], shape)


def _as_ort_value(spec: TensorSpec, array: Array) -> ort.OrtValue:
    if spec.datatype == BF16:
        bits = np.ascontiguousarray(array)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _as_array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), size), DTYPES[BF16])
    return bits.reshape(value.shape())
