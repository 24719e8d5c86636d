"""Finds out whether a model is row-wise: whether each output row depends on its input row alone.

Only then may the rows of several requests be joined into a batch, and those of one be split. A
shape says nothing about it: [n] may be n images or one sequence of n words.

Theory of operation: a copy of the model runs on random inputs, and no doubt is resolved in favour
of batching.

1. Every value inside the graph that depends on the inputs becomes an output, so a statistic over
   the rows shows at once, and not only when it happens to change the answer.
2. Inputs of several sizes and magnitudes run joined, repeated, permuted, in two parts and row by
   row. In each value, the rows must lie along one dimension in one way, and a row must have the
   same contents in any company.
3. A value that follows from the number of rows alone (the node Shape) may only be used for shapes.
4. Then every node runs on random contents of its own, whatever the nodes before it make. So a sum
   over the rows shows although it is one of flags that the random inputs never raise.
5. Nodes that run a graph of their own, local functions and random nodes are not examined: a model
   that has one is not batched.

What this cannot see is a single node that mixes rows only for particular contents of its own
inputs. It also vouches for no more rows than it ran, so Session runs a larger request whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from service.core.batching import Batching
from service.core.datatypes import BF16, BYTES, DTYPES, Array, from_bfloat16, to_bfloat16
from service.core.tensors import TensorSpec
from service.runtime import onnx_graph
from service.runtime.ort_values import ONNX_TYPES, run_ort_values, spec_of

# Two floats agree if they differ by at most the tolerance times the larger of 1 and the largest
# magnitude in their row: kernels differ in the order of their sums by the number of rows. Other
# datatypes must be equal.
TOLERANCES = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 1e-2, BF16: 5e-2}
_ROWS = 64  # a model is verified for batches of this size, unless they never get so large
_SECONDS = 10.0  # for all runs together
_SLOW_RUN_S = 0.02  # a model whose single row takes longer gains little from batches
_FILE_BYTES = 256 << 20
_VALUE_BYTES = 128 << 20  # of all values of the longest joined run
# More than _ROWS rows are verified, and joined, where that takes no longer than this.
_EXTRA_ROWS, _EXTRA_SECONDS = 1024, 2.0

_BF16_NAN = 0x7FC0
_FATAL = 4  # ONNX Runtime's log severity: random inputs may well fail

_SMALL_SIZES = (2, 3, 7)
_KINDS = ("unit", "small", "scales", "extreme", "alike", "zeros")  # see random_rows
_MAIN_KINDS = ("small", "scales", "extreme")
# Magnitudes of an extreme row. Sums of a few such numbers are still finite: whether one overflows
# can depend on the order of the sum.
_FLOATS = {"FP64": 1e305, "FP32": 1e36, "FP16": 1e4, BF16: 1e36}
_TEXTS = ("", "a", "b", "c", "0", "1", "2", "-1.5", "yes", "no", "é", "two words")
# Guesses of an inner size that is open; the first two that the model accepts are used in turn.
_INNER_SIZES = (5, 8, 32, 64, 224)
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_SIZES = {"Shape", "Size"}
# The nodes that make large values of small numbers: numbers given to them stay small.
_GROW = {"ConstantOfShape", "EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile"}
# Node -> the inputs that may be a number of rows; None means any input. Arithmetic and comparisons
# are missing: what they make of a number of rows can depend on a threshold.
_SHAPE_NODES: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Concat": None,
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (0,),
    "Identity": (0,),
    "Mul": None,
    "Reshape": None,
    "Slice": (0,),
    "Squeeze": (0,),
    "Unsqueeze": (0,),
}

_ADVICE = '; if its rows are independent, declare "batching": true in model.json'

Values = list[Array]
# (dimension, whether the values of one row lie together along it)
_Layout = tuple[int, bool]


class _Doubt(Exception):
    """Why a model is not taken as row-wise."""


def verify(path: Path, max_rows: int, clock: Callable[[], float] = time.monotonic) -> Batching:
    """Verify a model file for batches of up to `max_rows` rows.

    Raises nothing: whatever goes wrong is a reason not to batch. A run that outlasts the time for
    verification is ended.
    """
    run_options = ort.RunOptions()
    run_options.log_severity_level = _FATAL
    timer = Timer(_SECONDS, setattr, (run_options, "terminate", True))
    timer.daemon = True
    timer.start()
    rows = min(max_rows, _ROWS)
    try:
        largest = _Check(path, rows, run_options, clock).largest()
    except _FixedRows as fixed:  # a declaration would not help
        return Batching(False, f"off: {fixed}", declared=False)
    except _Doubt as doubt:
        return Batching(False, f"off: {doubt}{_ADVICE}", declared=False)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        text = " ".join(str(error).split())[:200]
        return Batching(False, f"off: verification failed ({text}){_ADVICE}", declared=False)
    finally:
        timer.cancel()
    rows = min(max_rows, largest)
    reason = f"verified for up to {rows} rows"
    return Batching(True, reason, max_rows=rows, max_split=largest, declared=False)


def fixed_rows(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Say which tensor has no open first dimension; empty if all of them have one."""
    for spec in (*inputs, *outputs):
        if not spec.has_rank:
            return f"the number of dimensions of '{spec.name}' is open"
        if spec.is_optional:
            return f"the input '{spec.name}' is optional"
        if spec.shape[:1] != (-1,):
            return f"the first dimension of '{spec.name}' is not open"
    return ""


class _FixedRows(Exception):
    """Which tensor has no open first dimension."""


class _Traced(NamedTuple):
    """Which values of a graph depend on the contents of the inputs, and which on their sizes only.

    `nodes` maps each of these values to its node; `size_uses` each size to the nodes that use it.
    """

    contents: set[str]
    sizes: set[str]
    nodes: dict[str, onnx_graph.Node]
    size_uses: dict[str, list[tuple[onnx_graph.Node, int]]]


class _Part(NamedTuple):
    """A session, and its inputs by their names."""

    session: ort.InferenceSession
    inputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, session: ort.InferenceSession) -> _Part:
        return cls(session, {node.name: spec_of(node) for node in session.get_inputs()})


class _Check:
    """One verification. The constructor loads the model; raises _Doubt."""

    def __init__(
        self, path: Path, rows: int, run_options: ort.RunOptions, clock: Callable[[], float]
    ) -> None:
        self._rows = rows
        self._options = run_options
        self._clock = clock
        self._end = clock() + _SECONDS
        self._rng = np.random.default_rng(0)
        if sum(file.stat().st_size for file in path.parent.iterdir()) > _FILE_BYTES:
            raise _Doubt(f"its files are larger than {_FILE_BYTES >> 20} MB, too many to verify")
        content = path.read_bytes()
        graph = onnx_graph.read(content)
        if graph.has_functions:
            raise _Doubt("it defines functions, which are not examined")
        for node in graph.nodes:
            if node.has_body or node.op in _RANDOM:
                kind = "runs a graph of its own" if node.has_body else "is random"
                raise _Doubt(f"the node {node.op} {kind}")
        self._largest_int = 9 if any(node.op in _GROW for node in graph.nodes) else 1000

        self._traced = _trace(graph)
        self._path = path
        self._added = [name for name in self._traced.nodes if name not in graph.outputs]
        session = _session(onnx_graph.with_outputs(content, self._added), path.parent)
        values = {node.name: spec_of(node) for node in session.get_outputs()}
        self._inputs = [spec_of(node) for node in session.get_inputs()]
        self._model = _Part.of(session)
        self._outputs = [values[name] for name in graph.outputs]
        if not self._inputs or not self._outputs:
            raise _Doubt("it has no inputs or no outputs")
        if closed := fixed_rows(self._inputs, self._outputs):
            raise _FixedRows(closed)
        shapes = [node.shape for node in session.get_inputs()]
        names = {shape[0] for shape in shapes if isinstance(shape[0], str)}
        if len(names) > 1:
            raise _Doubt(f"its inputs have different first dimensions: {', '.join(sorted(names))}")
        if any(size in names for shape in shapes for size in shape[1:]):
            raise _Doubt("the number of rows is also an inner dimension of an input")
        # In the order of the graph: the first value that mixes rows shows the node that does it.
        self._names = [*self._traced.nodes, *(set(graph.outputs) - self._traced.nodes.keys())]
        self._datatypes = {name: spec.datatype for name, spec in values.items()}
        self._datatypes |= {spec.name: spec.datatype for spec in self._inputs}
        self._has_bf16 = BF16 in self._datatypes.values()
        used = {name for node in graph.nodes for name in node.inputs}
        self._freed = sorted(used & self._traced.contents)
        self._inner_sizes = self._accepted_inner_sizes()
        self._layouts: dict[str, set[_Layout]] = {spec.name: {(0, True)} for spec in self._inputs}
        # Value -> inner size and number of rows -> its contents, if only sizes decide on them.
        self._by_size: dict[str, dict[tuple[int, int], Array]] = {}

    def largest(self) -> int:
        """Run all trials. Returns the largest number of rows of a run; raises _Doubt."""
        row, seconds = None, float("inf")
        for kind in ("unit", "small", "unit", "small"):
            start = self._clock()
            values = self._run(self._sample(1, kind, self._inner_sizes[-1]))
            if values is not None:
                row, seconds = values, min(seconds, self._clock() - start)
            # A busy machine may hold up a run, but hardly by this much.
            if row is not None and not _SLOW_RUN_S < seconds < 10 * _SLOW_RUN_S:
                break
        if row is None:
            raise _Doubt("it fails on random inputs")
        if seconds > _SLOW_RUN_S:
            raise _Doubt("it is too slow to be verified when it is loaded")
        row_bytes = sum(value.nbytes for value in row)
        if row_bytes * (self._rows + 1) > _VALUE_BYTES:
            raise _Doubt("its values are too large to be verified when it is loaded")

        for size in _SMALL_SIZES:
            self._trials(size, _KINDS)
        self._check_sizes()
        self._check_nodes()
        # Larger sizes, by the outputs alone.
        self._names = [spec.name for spec in self._outputs]
        for size in (16, self._rows + 1):
            self._trials(size, _MAIN_KINDS)
        # Beyond that, as far as a little time and memory suffice.
        end = self._clock() + _EXTRA_SECONDS
        while size < _EXTRA_ROWS and row_bytes * 2 * size <= _VALUE_BYTES:
            start = self._clock()
            self._trials(2 * size, _MAIN_KINDS)
            size *= 2
            if 3 * self._clock() - 2 * start > end:
                break
        return size

    def _trials(self, size: int, kinds: Sequence[str]) -> None:
        accepted = [
            self._trial(size, kind, inner)
            for kind, inner in zip(kinds, cycle(self._inner_sizes), strict=False)
        ]
        if not any(accepted):
            raise _Doubt(f"it fails on {size} random rows")

    def _trial(self, size: int, kind: str, inner: int) -> bool:
        """Compare one random batch with its rows in other company.

        Returns False if the model refuses the batch and also one of its rows. Raises _Doubt.
        """
        inputs = self._sample(size, kind, inner)
        joined = self._run(inputs)
        if joined is None:
            if all(self._run(_take(inputs, [row])) is not None for row in range(size)):
                raise _Doubt(f"it fails on {size} rows that it accepts alone")
            return False
        for rows in self._companies(size):
            values = self._run(_take(inputs, rows))
            if values is None:
                raise _Doubt(f"it fails on a part of {size} rows that it accepts")
            self._compare(joined, size, values, rows, inner)
        return True

    def _companies(self, size: int) -> list[Sequence[int]]:
        """Which of `size` rows run together: all, all in another order, two parts, and alone."""
        order = self._rng.permutation(size).tolist()
        cut = int(self._rng.integers(1, size))
        alone = range(size) if size <= 3 else self._rng.choice(size, 3, replace=False).tolist()
        return [range(size), order, range(cut), range(cut, size), *([row] for row in alone)]

    def _check_nodes(self) -> None:
        """Run each node on random contents of its own. Raises _Doubt.

        They have the shapes that they have in a run of the model. Afterwards one row is NaN, which
        shows a product of a row with 0.
        """
        types = {name: ONNX_TYPES[self._datatypes[name]] for name in self._freed}
        model = onnx_graph.with_free_values(self._path.read_bytes(), types, self._added)
        part, inner = _Part.of(_session(model, self._path.parent)), self._inner_sizes[-1]
        del model
        guessed: set[str] = set()
        for size in _SMALL_SIZES[1:]:
            values = None
            for kind in _KINDS:
                inputs = self._sample(size, kind, inner)
                if (values := self._run(inputs)) is not None:
                    break
            if values is None:
                raise _Doubt(f"it fails on {size} random rows")
            seen = dict(zip(self._names, values, strict=True))
            seen |= {spec.name: array for spec, array in zip(self._inputs, inputs, strict=True)}
            names = [*(spec.name for spec in self._inputs), *self._freed]
            rows_of = {name: self._layout(name, seen[name], size) for name in names}
            layouts = [rows_of[name] for name in names]
            # Any number may be an index. Those that the model makes are right, and if it makes but
            # one, others are tried.
            for name in names if size == _SMALL_SIZES[1] else ():
                if self._datatypes[name] not in _FLOATS and _is_one(seen[name]):
                    trial = [self._drawn(seen, each, {name}) for each in names]
                    if self._run(trial, part) is not None:
                        guessed.add(name)
            for kind in ("unit", "alike", "nan"):
                contents = [self._drawn(seen, name, guessed) for name in names]
                one = int(self._rng.integers(size))
                if kind != "unit":
                    contents = [
                        _with_row(array, size, layout, one, self._datatypes[name], kind)
                        for name, array, layout in zip(names, contents, layouts, strict=True)
                    ]
                joined = self._run(contents, part)
                if joined is None:
                    raise _Doubt("its nodes fail on random contents")
                for rows in self._companies(size):
                    taken = [
                        _from_rows(_split(array, size, layout)[list(rows)], layout)
                        for array, layout in zip(contents, layouts, strict=True)
                    ]
                    values = self._run(taken, part)
                    if values is None:
                        raise _Doubt(f"it fails on a part of {size} rows that it accepts")
                    self._compare(joined, size, values, rows, inner, one if kind == "nan" else -1)

    def _layout(self, name: str, value: Array, size: int) -> _Layout:
        """How the rows of a value lie. Raises _Doubt if its contents did not show it."""
        layouts = self._layouts[name]
        axis, together = max(layouts)
        if len(layouts) > 1 and value.shape[axis] > size:
            raise _Doubt(f"the node {self._op(name)} gives {name} in no certain order")
        return axis, together

    def _drawn(self, seen: Mapping[str, Array], name: str, guessed: Container[str]) -> Array:
        """Random contents for a value that is as `seen` in a run."""
        value, datatype = seen[name], self._datatypes[name]
        if datatype in _FLOATS or datatype == "BOOL" or name in guessed:
            spec = TensorSpec(name, datatype, value.shape)
            return random_rows(self._rng, spec, len(value), "unit", 0, 1)
        return self._rng.choice(value.ravel(), value.shape)

    def _compare(
        self,
        joined: Values,
        size: int,
        values: Values,
        rows: Sequence[int],
        inner: int,
        but: int = -1,
    ) -> None:
        """Check that values of these rows are those of the joined run of `size` rows.

        The row `but` is not looked at.
        """
        kept = [place for place, row in enumerate(rows) if row != but]
        in_joined = [row for row in rows if row != but]
        for name, whole, part in zip(self._names, joined, values, strict=True):
            if not isinstance(whole, np.ndarray) or not isinstance(part, np.ndarray):
                raise _Doubt("it has values that are no tensors")
            is_output = any(spec.name == name for spec in self._outputs)
            if name in self._traced.sizes:
                for number, value in ((size, whole), (len(rows), part)):
                    same = self._by_size.setdefault(name, {}).setdefault((inner, number), value)
                    if same.shape != value.shape or not np.array_equal(same, value):
                        raise _Doubt(f"the node {self._op(name)} gives {name} at random")
            layouts = self._layouts.get(name)
            if layouts is None:
                layouts = {(a, together) for a in range(whole.ndim) for together in (True, False)}
                self._layouts[name] = layouts = {(0, True)} if is_output else layouts
            for layout in list(layouts):
                ours, theirs = _by_row(whole, size, layout), _by_row(part, len(rows), layout)
                if (
                    ours is None
                    or theirs is None
                    or (is_output and len(whole) != size)
                    or not agree(self._datatypes[name], ours[in_joined], theirs[kept])
                ):
                    layouts.discard(layout)
            if not layouts and (is_output or name in self._traced.contents):
                raise _Doubt(f"the node {self._op(name)} mixes rows or is random")

    def _check_sizes(self) -> None:
        """Check that numbers of rows are used for shapes only. Raises _Doubt."""
        for name in self._traced.sizes:
            by_size = self._by_size[name]
            varies = any(
                not np.array_equal(value, by_size[inner, 1])
                for (inner, _), value in by_size.items()
            )
            if self._layouts[name] or not varies:
                continue
            for node, place in self._traced.size_uses.get(name, ()):
                places = _SHAPE_NODES.get(node.op, ())
                if places is not None and place not in places:
                    raise _Doubt(f"the node {node.op} computes with the number of rows")

    def _op(self, name: str) -> str:
        node = self._traced.nodes.get(name)
        return node.op if node else f"of the output '{name}'"

    def _run(self, inputs: Values, part: _Part | None = None) -> Values | None:
        """The values of a run, in the order of `_names`; None if it fails. Raises _Doubt.

        Of the model, unless it is of `part`, whose inputs these are then.
        """
        session, specs = part or self._model
        if self._clock() >= self._end:
            raise _Doubt(f"it was not verified within {_SECONDS:.0f} s")
        feed = dict(zip(specs, inputs, strict=True))
        try:
            if self._has_bf16:
                return run_ort_values(session, specs, self._names, feed, self._options)
            return list(session.run(self._names, feed, self._options))
        except Exception:  # ONNX Runtime's exceptions share no base class
            if self._options.terminate:
                raise _Doubt(f"it was not verified within {_SECONDS:.0f} s") from None
            return None

    def _accepted_inner_sizes(self) -> list[int]:
        if all(-1 not in spec.shape[1:] for spec in self._inputs):
            return [0]
        accepted: list[int] = []
        for inner in _INNER_SIZES:
            samples = (self._sample(1, kind, inner) for kind in ("unit", "small"))
            if len(accepted) < 2 and any(self._run(sample) is not None for sample in samples):
                accepted.append(inner)
        if not accepted:
            raise _Doubt("no inner size that was tried fits its open dimensions")
        return accepted

    def _sample(self, size: int, kind: str, inner: int) -> Values:
        return [
            random_rows(self._rng, spec, size, kind, inner, self._largest_int)
            for spec in self._inputs
        ]


def random_rows(
    rng: np.random.Generator,
    spec: TensorSpec,
    size: int,
    kind: str,
    inner_size: int = 5,
    largest_int: int = 1000,
) -> Array:
    """Random contents of an input with `size` rows, and `inner_size` for other open dimensions.

    `kind`: `unit` has floats around 0 and digits; `small` has 0 to 1; `scales` has rows of
    different magnitudes; in `extreme`, one row is far larger than the others; in `alike` all but
    one row are equal, in `zeros` all but one are 0.
    """
    shape = [size, *(inner_size if length < 0 else length for length in spec.shape[1:])]
    column = [size, *[1] * (len(shape) - 1)]
    one = int(rng.integers(size))
    if spec.datatype == BYTES:
        texts = np.array(_TEXTS, object)
        values = texts[rng.integers(len(texts), size=shape)]
    elif spec.datatype == "BOOL":
        values = rng.integers(2, size=shape).astype(bool)
    elif (largest := _FLOATS.get(spec.datatype)) is not None:
        values = rng.uniform(0, 1, shape) if kind == "small" else rng.normal(0, 1, shape)
        if kind == "scales":
            values = values * 10 ** rng.uniform(-3, 3, column)
        elif kind == "extreme":
            exponent = rng.choice([np.log10(largest), rng.uniform(3, np.log10(largest))])
            values[one] = np.sign(values[one]) * 10**exponent * rng.uniform(0.1, 1, shape[1:])
    else:
        dtype = DTYPES[spec.datatype]
        high = min(int(np.iinfo(dtype).max), 255 if dtype.itemsize == 1 else largest_int)
        highs = np.full(column, min(high, 1 if kind in ("small", "extreme") else 9))
        if kind == "scales":
            highs = rng.choice([1, min(high, 9), min(high, 99), high], column)
        elif kind == "extreme":
            highs[one] = high
        values = np.floor(rng.uniform(0, 1, shape) * (highs + 1)).astype(np.int64)
        if kind == "extreme" and np.iinfo(dtype).min < 0:
            values[one] *= -1
    if kind == "alike":
        values[[row for row in range(size) if row != one]] = values[one - 1]
    if kind == "zeros" and spec.datatype != BYTES:
        values[[row for row in range(size) if row != one]] = 0
    if spec.datatype == BF16:
        return to_bfloat16(values.astype(np.float64))
    return values.astype(DTYPES[spec.datatype])


def agree(datatype: str, a: Array, b: Array) -> bool:
    """Whether two values of the same rows, along dimension 0, are equal within the tolerance."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = TOLERANCES.get(datatype)
    if np.array_equal(a, b):
        return True
    if tolerance is None:
        return False
    if datatype == BF16:
        a, b = from_bfloat16(a), from_bfloat16(b)
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (a, b))
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    scale = np.maximum(1, np.abs(a).max(axis=1, keepdims=True))
    return bool((np.abs(a - b) <= tolerance * scale).all())


def _by_row(value: Array, rows: int, layout: _Layout) -> Array | None:
    """The value with its rows along dimension 0; None if its size does not allow this layout."""
    axis, _ = layout
    if axis >= value.ndim or value.size == 0 or value.shape[axis] % rows:
        return None
    return _split(value, rows, layout)


def _session(model: bytes, folder: Path) -> ort.InferenceSession:
    """A session of a serialized model, which runs every node as it is written."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False  # gives the memory of these runs back
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Prepacking copies the weights of each node, seconds and gigabytes for a large model.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _split(value: Array, rows: int, layout: _Layout) -> Array:
    axis, together = layout
    moved = np.moveaxis(value, axis, 0)
    length = value.shape[axis] // rows
    if together:
        return moved.reshape(rows, length, *moved.shape[1:])
    return np.swapaxes(moved.reshape(length, rows, *moved.shape[1:]), 0, 1)


def _from_rows(rows: Array, layout: _Layout) -> Array:
    """The value that `_split` splits into these rows."""
    axis, together = layout
    moved = rows if together else np.swapaxes(rows, 0, 1)
    return np.ascontiguousarray(np.moveaxis(moved.reshape(-1, *rows.shape[2:]), 0, axis))


def _with_row(
    value: Array, size: int, layout: _Layout, one: int, datatype: str, kind: str
) -> Array:
    """The value with equal rows but for `one` (`alike`), or with NaN in that row (`nan`)."""
    rows = _split(value, size, layout).copy()
    if kind == "alike":
        rows[[row for row in range(size) if row != one]] = rows[one - 1]
    elif datatype in _FLOATS:
        rows[one] = _BF16_NAN if datatype == BF16 else np.nan
    return _from_rows(rows, layout)


def _is_one(value: Array) -> bool:
    """Whether all elements are equal."""
    return bool((value == value.ravel()[0]).all())


def _take(inputs: Values, rows: Sequence[int]) -> Values:
    return [array[list(rows)] for array in inputs]


def _trace(graph: onnx_graph.Graph) -> _Traced:
    contents, sizes = set(graph.inputs), set[str]()
    nodes: dict[str, onnx_graph.Node] = {}
    known = -1
    while known != len(nodes):  # ONNX Runtime accepts nodes in any order
        known = len(nodes)
        for node in graph.nodes:
            outputs = [name for name in node.outputs if name]
            depends = not contents.isdisjoint(node.inputs)
            if depends and node.op not in _SIZES:
                contents.update(outputs)
            elif depends or not sizes.isdisjoint(node.inputs):
                sizes.update(outputs)
            else:
                continue
            nodes.update(dict.fromkeys(outputs, node))
    sizes -= contents
    size_uses: dict[str, list[tuple[onnx_graph.Node, int]]] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name in sizes:
                size_uses.setdefault(name, []).append((node, place))
    return _Traced(contents.difference(graph.inputs), sizes, nodes, size_uses)
