"""Small random ONNX graphs: row-wise ones, and ones that mix their rows in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.onnx_models import ELEMENT_TYPES

FLOATS = ("FP32", "FP32", "FP32", "FP64", "FP16", "BF16")
INTEGERS = ("INT64", "INT32", "INT8", "UINT8", "INT16", "UINT16", "UINT32", "UINT64")
DTYPES = {"FP64": np.float64, "FP16": np.float16}


class Graph:
    """A graph that grows node by node; `last` is its newest value.

    `inner` are the sizes behind the rows. `steps` names the functions that made the graph. Floats
    are computed in `kind`: FP32 for bfloat16, for which the CPU has few kernels.
    """

    def __init__(self, rng: np.random.Generator, datatype: str, inner: list[int]) -> None:
        self.rng = rng
        self.datatype = datatype
        self.kind = "FP32" if datatype == "BF16" else datatype
        self.inner = inner
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "x"
        self.steps: list[str] = []
        self._names = 0
        if datatype == "BF16":
            self.node("Cast", ["x"], to=TensorProto.FLOAT)

    def name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: object) -> str:
        """Add a node; its first output becomes the newest value."""
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        self.last = names[0]
        return names[0]

    def constant(self, value: object, dtype: object = np.int64) -> str:
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        if self.kind in INTEGERS:
            return self.constant(self.rng.integers(1, 4, shape), np.dtype(self.kind.lower()))
        return self.constant(self.rng.normal(0, 0.5, shape), DTYPES.get(self.kind, np.float32))

    def number(self, value: float) -> str:
        return self.constant(value, DTYPES.get(self.kind, np.float32))

    def model(self) -> onnx.ModelProto:
        last = self.last
        if self.datatype == "BF16":
            last = self.node("Cast", [last], to=TensorProto.BFLOAT16)
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        kind = ELEMENT_TYPES[self.datatype]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", kind, ["n", *self.inner])],
            [helper.make_tensor_value_info("y", kind, ["n", *[None] * len(self.inner)])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


Step = Callable[[Graph], None]


def _activation(g: Graph) -> None:
    g.node(str(g.rng.choice(["Relu", "Tanh", "Sigmoid", "Abs", "Neg"])), [g.last])


def _dense(g: Graph) -> None:
    g.node("MatMul", [g.last, g.weights(g.inner[-1], g.inner[-1])])


def _scale(g: Graph) -> None:
    op = str(g.rng.choice(["Add", "Sub", "Mul"]))
    g.node(op, [g.last, g.weights(*g.inner[-1:])])


def _softmax(g: Graph) -> None:
    g.node("Softmax", [g.last], axis=-1)


def _layer_norm(g: Graph) -> None:
    size = g.inner[-1]
    g.node("LayerNormalization", [g.last, g.weights(size), g.weights(size)], axis=-1)


def _row_reduction(g: Graph) -> None:
    op = str(g.rng.choice(["ReduceMax", "ReduceSum", "ReduceMin"]))
    x = g.last
    g.node("Sub", [x, g.node(op, [x, g.constant([len(g.inner)])], keepdims=1)])


def _select(g: Graph) -> None:
    size = g.inner[-1]
    g.node("Gather", [g.last, g.constant(g.rng.integers(size, size=size))], axis=len(g.inner))


def _row_cumsum(g: Graph) -> None:
    g.node("CumSum", [g.last, g.constant(len(g.inner))])


def _row_sort(g: Graph) -> None:
    g.node("TopK", [g.last, g.constant([g.inner[-1]])], outputs=2, axis=-1)


def _row_reverse(g: Graph) -> None:
    g.node("Slice", [g.last, *(g.constant([v]) for v in (-1, -100, len(g.inner), -1))])


def _row_argmax(g: Graph) -> None:
    x = g.last
    best = g.node("ArgMax", [x], axis=-1, keepdims=1)
    g.node("Add", [x, g.node("Cast", [best], to=ELEMENT_TYPES[g.kind])])


def _positive(g: Graph) -> None:
    x = g.last
    g.node("Where", [g.node("Greater", [x, g.number(0)]), x, g.number(-1)])


def _flat_and_back(g: Graph) -> None:
    """Flatten by the number of rows that the graph reads from its input, as exporters do."""
    x = g.last
    rows = g.node("Gather", [g.node("Shape", [x]), g.constant([0])])
    flat = g.node("Reshape", [x, g.node("Concat", [rows, g.constant([-1])], axis=0)])
    g.node("Reshape", [flat, g.node("Concat", [rows, g.constant(g.inner)], axis=0)])


def _row_attention(g: Graph) -> None:
    if len(g.inner) < 2:
        return _dense(g)
    x = g.last
    scores = g.node("MatMul", [x, g.node("Transpose", [x], perm=[0, 2, 1])])
    g.node("MatMul", [g.node("Softmax", [scores], axis=-1), x])
    return None


def _convolution(g: Graph) -> None:
    if len(g.inner) < 2 or g.kind != "FP32":
        return _scale(g)
    g.node("Conv", [g.last, g.weights(g.inner[0], g.inner[0], 3)], pads=[1, 1])
    return None


def _batch_norm(g: Graph) -> None:
    parameters = [g.weights(g.inner[0]) for _ in range(3)]
    variance = g.constant(g.rng.uniform(0.5, 2, g.inner[0]), DTYPES.get(g.kind, np.float32))
    g.node("BatchNormalization", [g.last, *parameters, variance])


def _recurrent(g: Graph) -> None:
    """An RNN over the inner dimension, whose layout has the rows second."""
    if len(g.inner) < 2 or g.kind != "FP32":
        return _scale(g)
    size = g.inner[1]
    steps = g.node("Transpose", [g.last], perm=[1, 0, 2])
    weights = [g.weights(1, size, size), g.weights(1, size, size)]
    states = g.node("RNN", [steps, *weights], hidden_size=size)  # [steps, 1, rows, size]
    g.node("Transpose", [g.node("Squeeze", [states, g.constant([1])])], perm=[1, 0, 2])
    return None


ROW_WISE: tuple[Step, ...] = (
    _activation,
    _dense,
    _scale,
    _softmax,
    _layer_norm,
    _row_reduction,
    _select,
    _row_cumsum,
    _row_sort,
    _row_reverse,
    _row_argmax,
    _positive,
    _flat_and_back,
    _row_attention,
    _convolution,
    _batch_norm,
    _recurrent,
)
ROW_WISE_INTEGERS: tuple[Step, ...] = (
    _scale,
    _row_reduction,
    _select,
    _row_reverse,
    _flat_and_back,
)


def _less_mean(g: Graph) -> None:
    x = g.last
    g.node("Sub", [x, g.node("ReduceMean", [x, g.constant([0])], keepdims=1)])


def _less_mean_of_all(g: Graph) -> None:
    x = g.last
    g.node("Sub", [x, g.node("ReduceMean", [x], keepdims=1)])


def _softmax_of_rows(g: Graph) -> None:
    g.node("Softmax", [g.last], axis=0)


def _cumsum_of_rows(g: Graph) -> None:
    g.node("CumSum", [g.last, g.constant(0)])


def _sort_of_rows(g: Graph) -> None:
    rows = g.node("Gather", [g.node("Shape", [g.last]), g.constant([0])])
    g.node("TopK", [g.nodes[-2].input[0], rows], outputs=2, axis=0)


def _reverse_of_rows(g: Graph) -> None:
    g.node("Slice", [g.last, *(g.constant([v]) for v in (-1, -(1 << 40), 0, -1))])


def _roll_of_rows(g: Graph) -> None:
    x = g.last
    end = 1 << 40
    rest = g.node("Slice", [x, g.constant([1]), g.constant([end]), g.constant([0])])
    first = g.node("Slice", [x, g.constant([0]), g.constant([1]), g.constant([0])])
    g.node("Concat", [rest, first], axis=0)


def _less_first_row(g: Graph) -> None:
    x = g.last
    g.node("Sub", [x, g.node("Gather", [x, g.constant([0])], axis=0)])


def _batch_norm_in_training(g: Graph) -> None:
    parameters = [g.weights(g.inner[0]) for _ in range(3)]
    variance = g.constant(g.rng.uniform(0.5, 2, g.inner[0]), DTYPES.get(g.kind, np.float32))
    g.node("BatchNormalization", [g.last, *parameters, variance], outputs=3, training_mode=1)


def _attention_across_rows(g: Graph) -> None:
    flat = g.node("Flatten", [g.last], axis=1)
    scores = g.node("MatMul", [flat, g.node("Transpose", [flat], perm=[1, 0])])
    mixed = g.node("MatMul", [g.node("Softmax", [scores], axis=-1), flat])
    g.node("Reshape", [mixed, g.constant([-1, *g.inner])])


def _reshape_across_rows(g: Graph) -> None:
    columns = g.node("Transpose", [g.node("Flatten", [g.last], axis=1)], perm=[1, 0])
    g.node("Reshape", [columns, g.constant([-1, *g.inner])])


def _scaled_by_largest(g: Graph) -> None:
    x = g.last
    largest = g.node("ReduceMax", [g.node("Abs", [x])], keepdims=1)
    g.node("Div", [x, g.node("Add", [largest, g.number(1)])])


def _threshold_of_all(g: Graph) -> None:
    """Zeros where any row has a value that is hardly ever reached."""
    x = g.last
    largest = g.node("ReduceMax", [x], keepdims=1)
    g.node("Where", [g.node("Greater", [largest, g.number(6e4)]), g.number(0), x])


def _rows_that_equal_the_largest(g: Graph) -> None:
    x = g.last
    largest = g.node("ReduceMax", [x, g.constant([0])], keepdims=1)
    g.node("Where", [g.node("Equal", [x, largest]), g.number(9), x])


def _number_of_rows_as_a_number(g: Graph) -> None:
    x = g.last
    rows = g.node("Gather", [g.node("Shape", [x]), g.constant(0)])
    number = g.node("Cast", [rows], to=ELEMENT_TYPES[g.kind])
    g.node("Div", [x, g.node("Max", [number, g.number(40)])])  # 1 / 40 in small batches


def _place_of_a_row(g: Graph) -> None:
    x = g.last
    rows = g.node("Gather", [g.node("Shape", [x]), g.constant(0)])
    places = g.node("Range", [g.constant(0), rows, g.constant(1)])
    column = g.node("Reshape", [places, g.constant([-1, *[1] * len(g.inner)])])
    g.node("Add", [x, g.node("Cast", [column], to=ELEMENT_TYPES[g.kind])])


def _recurrent_over_rows(g: Graph) -> None:
    if g.kind != "FP32":
        return _cumsum_of_rows(g)
    size = int(np.prod(g.inner))
    steps = g.node("Reshape", [g.last, g.constant([-1, 1, size])])
    weights = [g.weights(1, size, size), g.weights(1, size, size)]
    g.node(
        "Reshape", [g.node("RNN", [steps, *weights], hidden_size=size), g.constant([-1, *g.inner])]
    )
    return None


def _faint_mean(g: Graph) -> None:
    """A mean whose share is far below any tolerance, but for rows of very different sizes."""
    x = g.last
    mean = g.node("ReduceMean", [x, g.constant([0])], keepdims=1)
    g.node("Add", [x, g.node("Mul", [mean, g.number(1e-6)])])


MIXING: tuple[Step, ...] = (
    _less_mean,
    _less_mean_of_all,
    _softmax_of_rows,
    _cumsum_of_rows,
    _sort_of_rows,
    _reverse_of_rows,
    _roll_of_rows,
    _less_first_row,
    _batch_norm_in_training,
    _attention_across_rows,
    _reshape_across_rows,
    _scaled_by_largest,
    _threshold_of_all,
    _rows_that_equal_the_largest,
    _number_of_rows_as_a_number,
    _place_of_a_row,
    _recurrent_over_rows,
    _faint_mean,
)
MIXING_INTEGERS: tuple[Step, ...] = (
    _reverse_of_rows,
    _roll_of_rows,
    _less_first_row,
    _reshape_across_rows,
    _place_of_a_row,
)


def _noise(g: Graph) -> None:
    x = g.last
    g.node("Add", [x, g.node("RandomNormalLike", [x])])


def _dropout_in_training(g: Graph) -> None:
    g.node("Dropout", [g.last, g.number(0.5), g.constant(True, bool)])


def _coin(g: Graph) -> None:
    x = g.last
    g.node("Mul", [x, g.node("Bernoulli", [g.node("Sigmoid", [x])])])


RANDOM: tuple[Step, ...] = (_noise, _dropout_in_training, _coin)


def random_model(rng: np.random.Generator, special: tuple[Step, ...] | None, path: Path) -> Graph:
    """Write a graph of one to five row-wise nodes, with one of `special` among them, to `path`.

    Draws again until ONNX Runtime has kernels for all of it.
    """
    while True:
        integers = special in (None, MIXING) and rng.random() < 0.25
        datatype = str(rng.choice(INTEGERS if integers else FLOATS))
        graph = Graph(rng, datatype, [[6], [3, 4]][rng.integers(2)])
        usual = ROW_WISE_INTEGERS if integers else ROW_WISE
        steps = [usual[i] for i in rng.integers(len(usual), size=rng.integers(1, 5))]
        if special:
            choice = MIXING_INTEGERS if integers else special
            steps.insert(int(rng.integers(len(steps) + 1)), choice[rng.integers(len(choice))])
        for step in steps:
            step(graph)
        onnx.save(graph.model(), path)
        try:
            ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:  # noqa: S112 (not a valid graph; ONNX Runtime's exceptions share no base class)
            continue
        graph.steps = [step.__name__ for step in steps]
        return graph
