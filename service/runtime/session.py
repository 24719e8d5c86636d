"""One ONNX model in ONNX Runtime: loads it, checks it, warms it up and times it.

ONNX Runtime falls back from CUDA to the CPU with only a warning of its own. So the execution
provider is read back from the session, and a run proves that it works.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from threading import Timer
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime as ort

from service.core.batching import Batching
from service.core.datatypes import BF16, BYTES, DTYPES, MISSING, Array, to_bfloat16
from service.core.errors import ModelLoadError, ProviderUnavailable
from service.core.placement import Timing
from service.core.tensors import TensorSpec, check_spec
from service.runtime import cuda, onnx_graph, row_wise
from service.runtime.device import DEVICE, OnDevice, wait_for_releases
from service.runtime.fixed_batches import FixedBatches, have_fixed_rows
from service.runtime.ort_values import outputs_of, run_ort_values, spec_of

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
BUILT_WITHOUT_CUDA = (
    f"the installed ONNX Runtime {ort.__version__} is built without CUDA; "
    "install the extra 'gpu' instead of 'cpu'"
)
_CUDA_DEVICE = "cuda"  # ONNX Runtime's name of the device
# ONNX Runtime changes the case of texts in a locale of the C library, by default en_US.UTF-8.
_MISSING_LOCALE = re.compile(r"Failed to construct locale with name:([^:]*):")
_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors are exceptions, and logged once
_SYSTEM_ERROR = re.compile(r"system error number (\d{1,4})\b")  # ONNX Runtime's for errno
_WARM_UP_ROWS = 16
# Up to this many times the rows of a part run at once. Batchers send as many only to a model that
# takes less than the inline budget for them (`core.placement`). Four runs would take 5 % longer:
# between two of them, Python finds nothing of its own in the caches.
_QUICK = 4
# What the warm-up tries as the size of open dimensions and as the value of all elements.
_LARGEST_GUESS = 1 << 20  # elements of an input with open dimensions
_GUESSES = ((1, 0), (1, 1), (8, 1), (32, 1), (64, 1), (224, 1))
_SLOW_RUN_S = 0.02  # far more than `inline_budget`, so its exact time does not matter
# Longer inputs run in parts of this many rows: ONNX Runtime never frees the memory of its largest
# run, and parts of 64 are about as fast as the whole (docs/decisions/engine.md).
ROWS_OF_A_RUN = 64
# On CUDA 512 images take 2,034 us in parts of 64, 733 in parts of 256, 541 whole (`fast`, H200).
# The price is three more captures when a model is loaded, and the memory of 512 rows' activations.
# If that is too much for the device, loading finds out, and the model runs without graphs, in parts
# of 64.
ROWS_OF_A_RUN_ON_CUDA = 512


# Inputs of a warm-up: of each run, the arrays by the inputs' names.
Samples = Sequence[Mapping[str, Array]]


class Run(Protocol):
    """All outputs for all inputs, both in the model's order; `options` let others end the run."""

    def __call__(
        self, inputs: Sequence[Array], options: ort.RunOptions | None = None, /
    ) -> list[Array]: ...


class SessionOptions(NamedTuple):
    """The settings of ONNX Runtime."""

    provider: str = "auto"
    intra_op_threads: int = 1
    spinning: bool = False
    max_rows: int = ROWS_OF_A_RUN
    max_rows_on_cuda: int = ROWS_OF_A_RUN_ON_CUDA  # `max_rows` if that is larger
    max_run_s: float = 60.0  # for the runs of the warm-up


class Session:
    """A warmed-up model. `run` may be called from any thread, one call at a time.

    Attributes: `inputs` and `outputs` in the model's order, and in `unserved` what its outputs are
    that have no datatype in the protocol; `provider`, the execution provider in
    use, and `fallback`, why it is not CUDA (empty if CUDA runs or was not requested); `batching`,
    whether the rows of several requests may be joined along dimension 0, and those of one request
    run in parts; `batchable`, the same as one word; `has_rows`, whether dimension 0 counts rows
    (images) in statistics, limits and answers. The rows of a model that is not batched count as
    well, unless it is declared so: then, as in Triton, a request is one. `rows_of_a_run` is how
    many rows ONNX Runtime gets at a time. `defaults` are further inputs that have a value in the
    model; a request may replace it unless the model is batched, since then requests share inputs.
    `timing` is what the warm-up found out about the time of a run; `warm_up_error` says why it
    failed, and is empty if it did not.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        max_rows: int,
        batching: Batching,
        device: str = "",
        fixed: bool = True,
        max_run_s: float = 60.0,
        may_depend_on_values: bool = False,
        unranked: Container[str] = (),
        samples: Samples = (),
    ) -> None:
        """With `device`, the session runs and is freed under the lock of the device.

        A declaration of batching does not hold for a model whose first dimensions are fixed. If
        `fixed`, inputs and outputs have buffers on the device, and runs have fixed sizes. A warm-up
        of more than `max_run_s` fails. `may_depend_on_values` says so of the time of a run,
        `unranked` which tensors may have any number of dimensions. `samples` are the inputs of the
        warm-up. Raises ModelLoadError for tensors that cannot be served.
        """
        self._session = OnDevice(session) if device else session
        self.provider: str = session.get_providers()[0]
        self.fallback = ""
        self.inputs = tuple(spec_of(node, unranked) for node in session.get_inputs())
        self.outputs, self.unserved = outputs_of(session, unranked)
        defaults = [spec_of(node) for node in session.get_overridable_initializers()]
        self.defaults = tuple(spec._replace(is_optional=True) for spec in defaults)
        # Such a model cannot be batched, whatever is declared.
        fixed_rows = row_wise.fixed_rows(self.inputs, self.outputs)
        if not fixed_rows and not self.inputs:
            fixed_rows = "the model has no inputs"
        if fixed_rows:
            batching = Batching(False, f"off: {fixed_rows}")
        self.batching = batching
        self.batchable = batching.allowed
        self.has_rows = not fixed_rows and (batching.allowed or not batching.declared)
        self.rows_of_a_run = max_rows = min(max_rows, batching.max_rows)
        self._fixed: FixedBatches | None = None
        # Chosen once. It has no reference to this object: such a cycle would keep the session's
        # memory until the next garbage collection.
        self.run: Run
        if device and fixed:
            if not self.batchable:
                raise ModelLoadError(f"it is not batched ({batching.reason})")
            if not have_fixed_rows([*self.inputs, *self.outputs]):
                raise ModelLoadError("a size other than the number of rows is open in its tensors")
            self._fixed = FixedBatches(
                session, self.inputs, self.outputs, max_rows=max_rows, device=device
            )
            self.run = self._fixed.run
        elif self.batchable:
            # A larger run is safe if it was verified, or if nobody declared a largest batch.
            safe = batching.max_rows if batching.declared else batching.max_split
            self.run = PartedRuns(
                self._session,
                self.inputs,
                self.outputs,
                max_rows=max_rows,
                max_quick=min(_QUICK * max_rows, safe),
                max_split=batching.max_split,
            ).run
        elif self.defaults or any(spec.is_optional for spec in self.inputs):
            inputs = (*self.inputs, *self.defaults)
            self.run = PartialRuns(self._session, inputs, self.outputs).run
        else:
            self.run = WholeRuns(self._session, self.inputs, self.outputs).run
        on_this_thread = not device and session.get_session_options().intra_op_num_threads == 1
        clock = time.thread_time if on_this_thread else time.perf_counter
        self.warm_up_error = ""
        row_s = one_s = 0.0
        try:
            row_s, one_s = self._warm_up(samples, max_run_s, clock)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            self.warm_up_error = " ".join(str(error).split()) or type(error).__name__
        open_sizes = [size for spec in self.inputs for size in spec.shape[1:] if size < 0]
        self.timing = Timing(
            # The outputs of a row-wise model have a first dimension of their inputs' size.
            is_known=self.batchable and not open_sizes and not self.warm_up_error,
            rows=_WARM_UP_ROWS,
            fixed_s=max(0.0, one_s - row_s),
            row_s=row_s,
            may_depend_on_values=may_depend_on_values,
            clock=clock,
            is_cpu_time=on_this_thread,
            device=DEVICE if device else None,
        )

    @staticmethod
    def options() -> ort.RunOptions:
        """Options of one run, by which another thread can end it."""
        options = ort.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        return options

    def _warm_up(
        self, samples: Samples, max_run_s: float, clock: Callable[[], float]
    ) -> tuple[float, float]:
        """Seconds per row, and those of one row.

        Without samples, several guesses are tried. Raises what the last of them raised, or the
        first sample that fails; ModelLoadError for a run that is ended.
        """
        options = self.options()
        timer = Timer(max_run_s, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            if samples:
                times = [self._time(self._sample(each), options, clock) for each in samples]
                return times[0]
            for number, (size, value) in enumerate(_GUESSES, 1):
                try:
                    return self._time(self._guess(size, value), options, clock)
                except Exception:  # ONNX Runtime's exceptions share no base class
                    if options.terminate or number == len(_GUESSES):
                        raise
            raise AssertionError("unreachable")
        except Exception as error:
            if options.terminate:
                raise ModelLoadError(
                    f"it took longer than {max_run_s:g} seconds (max_run_seconds)"
                ) from error
            raise
        finally:
            timer.cancel()

    def _sample(self, sample: Mapping[str, Array]) -> list[Array]:
        """The inputs of a run, from those of a sample. Raises ModelLoadError if they do not fit."""
        specs = (*self.inputs, *self.defaults) if not self.batchable else self.inputs
        if unknown := sample.keys() - {spec.name for spec in specs}:
            raise ModelLoadError(f"a sample names '{min(unknown)}', which is not an input")
        arrays = []
        for spec in specs:
            if spec.name in sample:
                array = np.asarray(sample[spec.name])
                if spec.datatype == BF16 and array.dtype.kind != "u":
                    array = to_bfloat16(array.astype(np.float64))
                arrays.append(np.asarray(array, DTYPES[spec.datatype], order="C"))
                check_spec(spec, spec.datatype, array.shape)
            elif spec.is_optional:
                arrays.append(MISSING)
            else:
                raise ModelLoadError(f"a sample lacks the input '{spec.name}'")
        return arrays

    def _guess(self, size: int, value: int) -> list[Array]:
        """Inputs of one row, with `size` for other open dimensions, and equal values.

        Raises ModelLoadError if they are too large for a guess.
        """
        arrays = []
        for spec in self.inputs:
            rows = 1 if self.batchable else size
            shape = [
                (size if i else rows) if length < 0 else length
                for i, length in enumerate(spec.shape)
            ]
            if size > 1 and prod(shape) > _LARGEST_GUESS:
                raise ModelLoadError("no inputs that were tried fit its open dimensions")
            text = str(value) if value else ""
            fill = text if spec.datatype == BYTES else value
            arrays.append(np.full(shape, fill, DTYPES[spec.datatype]))
        return arrays

    def _time(
        self, inputs: list[Array], options: ort.RunOptions, clock: Callable[[], float]
    ) -> tuple[float, float]:
        """Seconds per row of a batched model, and those of a run, of one row if there are rows."""
        if not self.batchable:
            return 0.0, self._shortest(inputs, options, clock)
        one = [array[:1] for array in inputs]
        one_s = self._shortest(one, options, clock)
        many = [np.repeat(array, _WARM_UP_ROWS, axis=0) for array in one]
        many_s = self._shortest(many, options, clock)
        return max(0.0, (many_s - one_s) / (_WARM_UP_ROWS - 1)), one_s

    def _shortest(
        self, inputs: list[Array], options: ort.RunOptions, clock: Callable[[], float]
    ) -> float:
        """Seconds of the shortest of three runs, or two slow ones: the first allocates memory."""
        best = float("inf")
        for number in range(3):
            start = clock()
            self.run(inputs, options)
            best = min(best, clock() - start)
            if number and best > _SLOW_RUN_S:
                break
        return best


class WholeRuns:
    """Runs all rows at once.

    A class rather than a closure: the frames in a traceback keep the closures of their functions
    alive, and a failed load must release its session before the next try.
    """

    def __init__(
        self,
        session: ort.InferenceSession | OnDevice,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self._input_names = [spec.name for spec in inputs]
        self._output_names = [spec.name for spec in outputs]
        # `session.run` validates the inputs again; that is 3 of the 31 us of a small model.
        self._ort_run: Callable[..., list[Array]] = (
            session.run if isinstance(session, OnDevice) else session._sess.run
        )
        if any(spec.datatype == BF16 for spec in (*inputs, *outputs)):
            self._ort_run = partial(run_ort_values, session, {spec.name: spec for spec in inputs})

    def run(self, arrays: Sequence[Array], options: ort.RunOptions | None = None) -> list[Array]:
        """All outputs for all inputs, both in the model's order."""
        feed = dict(zip(self._input_names, arrays, strict=True))
        return self._ort_run(self._output_names, feed, options)


class PartialRuns(WholeRuns):
    """Runs all rows at once, without the inputs that are `MISSING` or not there at the end."""

    def run(self, arrays: Sequence[Array], options: ort.RunOptions | None = None) -> list[Array]:
        """All outputs for the inputs that are not missing; ONNX Runtime has values for others."""
        pairs = zip(self._input_names, arrays, strict=False)
        feed = {name: array for name, array in pairs if array is not MISSING}
        return self._ort_run(self._output_names, feed, options)


class PartedRuns(WholeRuns):
    """Runs up to `max_quick` rows at once, and more of them in parts of `max_rows`.

    But more than `max_split` run whole.
    """

    def __init__(
        self,
        session: ort.InferenceSession | OnDevice,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_rows: int,
        max_quick: int,
        max_split: int,
    ) -> None:
        super().__init__(session, inputs, outputs)
        self._max_rows = max_rows
        self._max_quick = max_quick
        self._max_split = max_split

    def run(self, arrays: Sequence[Array], options: ort.RunOptions | None = None) -> list[Array]:
        """All outputs for all inputs, both in the model's order."""
        rows = len(arrays[0])
        if rows <= self._max_quick or rows > self._max_split:
            # As WholeRuns does it, with one call less on the request path.
            feed = dict(zip(self._input_names, arrays, strict=True))
            return self._ort_run(self._output_names, feed, options)
        parts = []
        for start in range(0, rows, self._max_rows):
            part = [array[start : start + self._max_rows] for array in arrays]
            try:
                outputs = super().run(part, options)
            except Exception:  # the outputs or the error must be those of the whole input
                return super().run(arrays, options)
            if any(len(output) != len(part[0]) for output in outputs):
                # The shapes promised one output row per input row: only the whole is right.
                return super().run(arrays, options)
            parts.append(outputs)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _graph(path: Path) -> onnx_graph.Graph | None:
    """The graph of a model; None if it cannot be read here."""
    try:
        return onnx_graph.read(np.memmap(path, np.uint8, "r").data)
    except (OSError, ValueError):
        return None


def cuda_is_built_in() -> bool:
    """Whether the installed ONNX Runtime can use CUDA on a machine that has it."""
    return CUDA in ort.get_available_providers()


def verified(path: Path, options: SessionOptions) -> Batching:
    """How a model that declares nothing may be batched with these options."""
    on_cuda = options.provider != "cpu" and cuda_is_built_in()
    rows = max(options.max_rows, options.max_rows_on_cuda if on_cuda else 0)
    return row_wise.verify(path, rows)


def load(
    path: Path,
    options: SessionOptions,
    batching: Batching | None = None,
    samples: Samples = (),
) -> Session:
    """Load one model file, on CUDA if the options allow it and it works, else on the CPU.

    Without `batching`, the model is verified to be row-wise, and not batched if it is not. It is
    warmed up with `samples`, or else with guesses; that this failed is all that the session says.

    Raises ModelLoadError if ONNX Runtime rejects the model or it has tensors that cannot be served,
    ProviderUnavailable if `options.provider` is cuda and CUDA does not run the model.
    """
    if batching is None:
        batching = verified(path, options)
    if options.provider == "cpu":
        return _create(path, options, batching, [CPU], samples=samples)
    try:
        return _load_on_cuda(path, options, batching, samples)
    except ProviderUnavailable as error:
        if options.provider == "cuda":
            raise
        session = _create(path, options, batching, [CPU], samples=samples)
        session.fallback = str(error)
        return session


def _load_on_cuda(
    path: Path, options: SessionOptions, batching: Batching, samples: Samples
) -> Session:
    """Load a model with CUDA graphs, or else without. Raises ProviderUnavailable."""
    if not cuda_is_built_in():
        raise ProviderUnavailable(BUILT_WITHOUT_CUDA)
    ort.preload_dlls()  # finds CUDA and cuDNN in their wheels; a failure shows only below
    # With CUDA alone and fallback off, ONNX Runtime fails instead of using the CPU.
    entries = {"session.disable_cpu_ep_fallback": "1"}
    session = None
    try:
        session = _create(
            path,
            options._replace(max_rows=max(options.max_rows, options.max_rows_on_cuda)),
            batching,
            [(CUDA, {"enable_cuda_graph": "1"})],
            entries,
            device=_CUDA_DEVICE,
            samples=samples,
        )
    except ModelLoadError as error:
        graph_error = cuda.in_short(error.message)
    # Not in the handler: by now the first error is freed, with all that it refers to.
    if session is None:
        without_graphs = partial(
            _create,
            path,
            options,
            batching,
            [CUDA],
            entries,
            device=_CUDA_DEVICE,
            fixed=False,
            samples=samples,
        )
        try:
            session = without_graphs()
        except ModelLoadError as error:
            missing = cuda.what_is_missing()
            reason = missing or cuda.in_short(error.message)
        # If the CPU fails on the inputs of the warm-up as well, they are wrong, and not CUDA.
        if session is None and not missing:
            with contextlib.suppress(ModelLoadError):
                if _create(path, options, batching, [CPU], samples=samples).warm_up_error:
                    session = without_graphs(may_fail=True)
        if session is None:
            raise ProviderUnavailable(f"CUDA does not run {path}: {reason}")
        log.warning("%s runs on CUDA without CUDA graphs, and slower: %s.", path, graph_error)
    if session.provider != CUDA:
        raise ProviderUnavailable(f"ONNX Runtime chose {session.provider} for {path}")
    return session


def _create(
    path: Path,
    options: SessionOptions,
    batching: Batching,
    providers: Sequence[str | tuple[str, dict[str, str]]],
    entries: Mapping[str, str] = MappingProxyType({}),
    *,
    device: str = "",
    fixed: bool = True,
    samples: Samples = (),
    may_fail: bool = False,
) -> Session:
    """Create a session on these providers and warm it up. Raises ModelLoadError.

    `entries` are configuration entries of ONNX Runtime; `device`, `fixed` and `samples` are those
    of Session. On a device a warm-up that fails is an error, unless it `may_fail`.
    """
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.intra_op_threads
    session_options.inter_op_num_threads = 1
    graph = _graph(path)
    # A plan of the memory saves 5 of 130 us for one image, and takes 4 MB at 64 rows. ONNX Runtime
    # keeps one for each shape of the inputs, so there must be few: the sizes of a batch. CUDA is as
    # it was measured.
    session_options.enable_mem_pattern = (
        not device
        and graph is not None
        and graph.only_rows_are_open
        and batching.is_split_at_any_size
    )
    session_options.log_severity_level = _FATAL_ONLY
    spinning = {"session.intra_op.allow_spinning": str(int(options.spinning))}
    for key, value in (spinning | dict(entries)).items():
        session_options.add_session_config_entry(key, value)

    ort_session = session = None
    try:
        with DEVICE if device else contextlib.nullcontext():
            # The fallback would be to other providers, with no more than a print().
            ort_session = ort.InferenceSession(
                str(path), session_options, providers=list(providers), enable_fallback=False
            )
        session = Session(
            ort_session,
            options.max_rows,
            batching,
            device=device,
            fixed=fixed,
            max_run_s=options.max_run_s,
            # Through If, Loop or Scan, or in functions.
            may_depend_on_values=graph is None
            or graph.has_functions
            or any(node.has_body for node in graph.nodes),
            unranked=graph.unranked if graph else (),
            samples=samples,
        )
        if device and session.warm_up_error and not may_fail:
            raise ModelLoadError(session.warm_up_error)
        return session
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if device:
            # Free the half-built session now, under the lock: another attempt needs its memory.
            # This function and the frames in the traceback refer to it.
            with DEVICE:
                ort_session = session = None
                traceback.clear_frames(error.__traceback__)
            wait_for_releases()
        if isinstance(error, ModelLoadError):
            raise
        text = " ".join(str(error).split())
        if number := _SYSTEM_ERROR.search(text):  # so that others can tell what passes
            code = int(number[1])
            raise ModelLoadError(f"{text} ({os.strerror(code)})") from OSError(code, text)
        if missing := _MISSING_LOCALE.search(text):
            text = (
                f"its StringNormalizer needs the locale {missing[1]}, which this system does not "
                "have; install the locale (Debian: apt-get install locales-all) and start the "
                "server again, or publish the model with one that is installed, such as "
                "locale='C.UTF-8'"
            )
        raise ModelLoadError(text) from error
