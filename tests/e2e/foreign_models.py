"""Models as other people have them, of many kinds, each with requests for it.

All are made here: by onnx.helper, by torch's exporter and by skl2onnx.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT32, INT64, INT8 = TensorProto.INT32, TensorProto.INT64, TensorProto.INT8
UINT8, BOOL, STRING = TensorProto.UINT8, TensorProto.BOOL, TensorProto.STRING

Feed = Mapping[str, np.ndarray]
Spec = tuple[str, int, Any]
node = helper.make_node


class Foreign(NamedTuple):
    """A model (a path for one with files of its own) and requests; `config` is its config.pbtxt."""

    model: onnx.ModelProto | Path
    requests: Sequence[Feed]
    config: str = ""
    card: str = ""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng().normal(size=shape).astype(np.float32)


def texts(*values: Any) -> np.ndarray:
    return np.array(values, object)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    weights: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    ir: int = 10,
    ml: bool = False,
    listed: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; weights that are `listed` are inputs as well."""
    arrays = {name: np.asarray(value) for name, value in (weights or {}).items()}
    infos = [helper.make_tensor_value_info(*spec) for spec in inputs]
    for name in listed:
        kind = helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
        infos.append(helper.make_tensor_value_info(name, kind, arrays[name].shape))
    graph = helper.make_graph(
        nodes,
        "graph",
        infos,
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if ml:
        opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
    if functions:
        opsets.append(helper.make_opsetid("ours", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions)


def value_info(name: str, kind: int, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def one(op: str, kind: int, shape: Any, requests: Sequence[np.ndarray], **options: Any) -> Foreign:
    """A model of one node from `x` to `y` of one datatype; `out` is the shape of `y`."""
    out = options.pop("out", shape)
    opset = options.pop("opset", 18)
    made = model(
        [node(op, ["x"], ["y"], **options)], [("x", kind, shape)], [("y", kind, out)], opset=opset
    )
    return Foreign(made, [{"x": x} for x in requests])


def centred() -> Foreign:
    """One sequence, not rows: nothing in its shape says so."""
    nodes = [node("ReduceMean", ["x"], ["mean"], keepdims=1), node("Sub", ["x", "mean"], ["y"])]
    made = model(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    return Foreign(made, [{"x": floats(200)}, {"x": floats(3)}])


def softmax_over_time() -> Foreign:
    return one("Softmax", FLOAT, ["time", "batch", 8], [floats(100, 2, 8), floats(1, 3, 8)], axis=0)


def open_convolution() -> Foreign:
    """Height and width are open, and the kernel needs five of both."""
    nodes = [node("Conv", ["x", "k"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])]
    made = model(
        nodes,
        [("x", FLOAT, ["n", 3, "h", "w"])],
        [("y", FLOAT, ["n", 4, 1, 1])],
        {"k": floats(4, 3, 5, 5)},
    )
    return Foreign(made, [{"x": floats(2, 3, 9, 7)}, {"x": floats(1, 3, 40, 5)}])


def huge_kernel() -> Foreign:
    """No guess of the warm-up is large enough."""
    nodes = [node("Conv", ["x", "k"], ["y"])]
    made = model(
        nodes,
        [("x", FLOAT, ["n", 1, "h", 1])],
        [("y", FLOAT, ["n", 1, "out", 1])],
        {"k": floats(1, 1, 400, 1)},
    )
    return Foreign(made, [{"x": floats(1, 1, 401, 1)}])


def integer_division() -> Foreign:
    made = model(
        [node("Div", ["six", "x"], ["y"])],
        [("x", INT64, ["n", 3])],
        [("y", INT64, ["n", 3])],
        {"six": np.int64(6)},
    )
    return Foreign(made, [{"x": np.array([[1, -2, 3], [4, 5, 6]])}])


def reshape_in_groups() -> Foreign:
    """Only multiples of four fit."""
    made = model(
        [node("Reshape", ["x", "shape"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["m", 4])],
        {"shape": np.array([-1, 4])},
    )
    return Foreign(made, [{"x": floats(12)}])


def string_numbers() -> Foreign:
    """Adds numbers that are texts, as Triton's simple_string does; an empty text is none."""
    nodes = [
        *[node("Cast", [name], [f"{name}_int"], to=INT32) for name in ("a", "b")],
        node("Add", ["a_int", "b_int"], ["sum_int"]),
        node("Cast", ["sum_int"], ["sum"], to=STRING),
    ]
    pair = [(name, STRING, [-1, 4]) for name in ("a", "b")]
    feed = {"a": texts(*"1234").reshape(1, 4), "b": texts(*["10"] * 4).reshape(1, 4)}
    made = model(nodes, pair, [("sum", STRING, [-1, 4])])
    return Foreign(made, [feed], "max_batch_size: 8")


def string_identity() -> Foreign:
    return one("Identity", STRING, ["n"], [texts("a", "", "é", "a\0b"), texts()])


def string_split() -> Foreign:
    """Its input need not be UTF-8."""
    made = model(
        [node("StringSplit", ["x"], ["parts", "y"], delimiter=" ")],
        [("x", STRING, ["n"])],
        [("y", INT64, ["n"])],
        opset=20,
    )
    return Foreign(made, [{"x": texts("one two", "three")}, {"x": texts(b"\xff \xfe", b"a")}])


def label_encoder() -> Foreign:
    encoder = node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        keys_strings=["red", "green"],
        values_int64s=[7, 8],
        default_int64=-1,
    )
    made = model([encoder], [("x", STRING, ["n", 1])], [("y", INT64, ["n", 1])], ml=True)
    return Foreign(made, [{"x": texts("red", "blue", "green").reshape(3, 1)}])


def unknown_rank() -> Foreign:
    return one("Neg", FLOAT, None, [floats(2, 3), floats(4), np.array(5, np.float32)])


def unknown_output_rank() -> Foreign:
    made = model(
        [node("Reshape", ["x", "shape"], ["y"])],
        [("x", FLOAT, ["n"]), ("shape", INT64, ["rank"])],
        [("y", FLOAT, None)],
    )
    return Foreign(made, [{"x": floats(6), "shape": np.array([2, 3])}])


def scalar() -> Foreign:
    return one("Abs", INT64, [], [np.array(-5), np.array(3)])


def scalars_to_range() -> Foreign:
    made = model(
        [node("Range", ["start", "limit", "step"], ["y"])],
        [(name, INT64, []) for name in ("start", "limit", "step")],
        [("y", INT64, ["n"])],
    )
    requests = [(0, 10, 3), (5, 5, 1)]
    return Foreign(
        made,
        [
            dict(zip(("start", "limit", "step"), map(np.array, each), strict=True))
            for each in requests
        ],
    )


def empty_parts() -> Foreign:
    made = model(
        [node("Concat", ["a", "b"], ["y"], axis=1)],
        [("a", FLOAT, ["n", "i"]), ("b", FLOAT, ["n", "j"])],
        [("y", FLOAT, ["n", "k"])],
    )
    return Foreign(
        made,
        [
            {"a": floats(2, 0), "b": floats(2, 3)},
            {"a": floats(2, 0), "b": floats(2, 0)},
            {"a": floats(0, 1), "b": floats(0, 3)},
        ],
    )


def no_rows() -> Foreign:
    """A batched model, with requests of no rows."""
    made = one("Relu", FLOAT, ["n", 3], [floats(0, 3), floats(2, 3)])
    return made._replace(config="max_batch_size: 8")


def imputer() -> Foreign:
    nodes = [node("IsNaN", ["x"], ["nan"]), node("Where", ["nan", "mean", "x"], ["y"])]
    made = model(nodes, [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 2])], {"mean": np.float32(7)})
    return Foreign(made, [{"x": np.array([[1, np.nan], [np.inf, -np.inf]], np.float32)}])


def optional_input() -> Foreign:
    """With an input 7, or without."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"]))
    branches = {
        "then_branch": helper.make_graph(
            [node("OptionalGetElement", ["x"], ["t"])], "then", [], [value_info("t", FLOAT, ["n"])]
        ),
        "else_branch": helper.make_graph(
            [node("Constant", [], ["e"], value_floats=[7.0])],
            "else",
            [],
            [value_info("e", FLOAT, ["n"])],
        ),
    }
    nodes = [node("OptionalHasElement", ["x"], ["has"]), node("If", ["has"], ["z"], **branches)]
    graph = helper.make_graph(
        [*nodes, node("Add", ["z", "w"], ["y"])],
        "graph",
        [value_info("w", FLOAT, [1]), helper.make_value_info("x", kind)],
        [value_info("y", FLOAT, ["n"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Foreign(made, [{"w": floats(1), "x": floats(3)}, {"w": floats(1)}])


def input_with_a_value() -> Foreign:
    made = model(
        [node("Mul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        {"w": np.array([1, 2], np.float32)},
        listed=["w"],
    )
    requests = [{"x": floats(3, 2)}, {"x": floats(3, 2), "w": floats(2)}]
    return Foreign(made, requests, card='{"batching": false}')


def old_format() -> Foreign:
    """Version 3 of the format lists all weights as inputs."""
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 2])],
        {"w": floats(3, 2)},
        opset=7,
        ir=3,
        listed=["w"],
    )
    return Foreign(made, [{"x": floats(5, 3)}])


def half_precision() -> Foreign:
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        [("x", HALF, ["n", 3])],
        [("y", HALF, ["n", 2])],
        {"w": floats(3, 2).astype(np.float16)},
    )
    return Foreign(made, [{"x": floats(4, 3).astype(np.float16)}])


def double_precision() -> Foreign:
    return one("Exp", DOUBLE, ["n", 2], [floats(3, 2).astype(np.float64)], opset=13)


def quantized() -> Foreign:
    """QuantizeLinear and DequantizeLinear around a product."""
    weights = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "w": rng().integers(-127, 127, (4, 3), dtype=np.int8),
        "w_scale": np.float32(0.01),
        "w_zero": np.int8(0),
    }
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        node("MatMul", ["d", "wd"], ["y"]),
    ]
    made = model(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], weights)
    return Foreign(made, [{"x": floats(3, 4)}])


def dynamically_quantized() -> Foreign:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], ["i"]),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("Mul", ["f", "scale"], ["y"]),
    ]
    weights = {"w": rng().integers(-127, 127, (4, 3), dtype=np.int8)}
    made = model(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], weights)
    return Foreign(made, [{"x": floats(3, 4)}])


def loop() -> Foreign:
    body = helper.make_graph(
        [node("Add", ["before", "before"], ["after"]), node("Identity", ["more"], ["again"])],
        "body",
        [
            value_info("i", INT64, []),
            value_info("more", BOOL, []),
            value_info("before", FLOAT, [2]),
        ],
        [value_info("again", BOOL, []), value_info("after", FLOAT, [2])],
    )
    made = model(
        [node("Loop", ["n", "", "x"], ["y"], body=body)],
        [("n", INT64, []), ("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
    )
    return Foreign(made, [{"n": np.array(5), "x": floats(2)}, {"n": np.array(0), "x": floats(2)}])


def condition() -> Foreign:
    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node(op, ["x"], [name])], name, [], [value_info(name, FLOAT, [3])]
        )

    made = model(
        [node("If", ["c"], ["y"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs"))],
        [("c", BOOL, []), ("x", FLOAT, [3])],
        [("y", FLOAT, [3])],
    )
    return Foreign(made, [{"c": np.array(flag), "x": floats(3)} for flag in (True, False)])


def scan() -> Foreign:
    body = helper.make_graph(
        [node("Add", ["state", "x"], ["next"]), node("Identity", ["next"], ["out"])],
        "body",
        [value_info("state", FLOAT, [2]), value_info("x", FLOAT, [2])],
        [value_info("next", FLOAT, [2]), value_info("out", FLOAT, [2])],
    )
    made = model(
        [node("Scan", ["s", "xs"], ["final", "all"], num_scan_inputs=1, body=body)],
        [("s", FLOAT, [2]), ("xs", FLOAT, ["n", 2])],
        [("final", FLOAT, [2]), ("all", FLOAT, ["n", 2])],
    )
    return Foreign(made, [{"s": floats(2), "xs": floats(7, 2)}])


def lstm() -> Foreign:
    made = model(
        [node("LSTM", ["x", "w", "r"], ["y", "h", "c"], hidden_size=4)],
        [("x", FLOAT, ["time", "batch", 3])],
        [
            ("y", FLOAT, ["time", 1, "batch", 4]),
            ("h", FLOAT, [1, "batch", 4]),
            ("c", FLOAT, [1, "batch", 4]),
        ],
        {"w": floats(1, 16, 3), "r": floats(1, 16, 4)},
    )
    return Foreign(made, [{"x": floats(6, 2, 3)}, {"x": floats(1, 1, 3)}])


def gru() -> Foreign:
    gru_node = node("GRU", ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional")
    made = model(
        [gru_node],
        [("x", FLOAT, ["time", 1, 3])],
        [("y", FLOAT, ["time", 2, 1, 4])],
        {"w": floats(2, 12, 3), "r": floats(2, 12, 4)},
    )
    return Foreign(made, [{"x": floats(5, 1, 3)}])


def embedding() -> Foreign:
    """Mean of word vectors; an index beyond the table is an error."""
    nodes = [
        node("Gather", ["table", "ids"], ["vectors"]),
        node("ReduceMean", ["vectors", "one"], ["y"], keepdims=0),
    ]
    made = model(
        nodes,
        [("ids", INT64, ["batch", "words"])],
        [("y", FLOAT, ["batch", 8])],
        {"table": floats(50, 8), "one": np.array([1])},
    )
    return Foreign(made, [{"ids": rng().integers(0, 50, (3, 6))}, {"ids": np.array([[49]])}])


def data_dependent_shape() -> Foreign:
    made = model(
        [node("NonZero", ["x"], ["y"])], [("x", FLOAT, ["n", 3])], [("y", INT64, [2, "count"])]
    )
    return Foreign(made, [{"x": np.eye(3, dtype=np.float32)}, {"x": np.zeros((2, 3), np.float32)}])


def top_k() -> Foreign:
    made = model(
        [node("TopK", ["x", "k"], ["values", "places"])],
        [("x", FLOAT, ["n", 9]), ("k", INT64, [1])],
        [("values", FLOAT, ["n", "k"]), ("places", INT64, ["n", "k"])],
    )
    return Foreign(made, [{"x": floats(2, 9), "k": np.array([3])}])


def boxes() -> Foreign:
    made = model(
        [node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["y"])],
        [("boxes", FLOAT, ["n", "boxes", 4]), ("scores", FLOAT, ["n", "classes", "boxes"])],
        [("y", INT64, ["kept", 3])],
        {"most": np.array([3]), "overlap": np.array([0.5], np.float32)},
    )
    corners = np.sort(rng().uniform(size=(1, 20, 2, 2)), axis=2).reshape(1, 20, 4)
    scores = rng().uniform(size=(1, 2, 20))
    return Foreign(
        made, [{"boxes": corners.astype(np.float32), "scores": scores.astype(np.float32)}]
    )


def resize() -> Foreign:
    made = model(
        [node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")],
        [("x", FLOAT, [1, 1, "h", "w"])],
        [("y", FLOAT, [1, 1, 6, 6])],
        {"sizes": np.array([1, 1, 6, 6])},
    )
    return Foreign(made, [{"x": floats(1, 1, 3, 4)}])


def upsampling() -> Foreign:
    made = model(
        [node("ConvTranspose", ["x", "k"], ["y"], strides=[2, 2])],
        [("x", FLOAT, ["n", 2, "h", "w"])],
        [("y", FLOAT, ["n", 1, "h2", "w2"])],
        {"k": floats(2, 1, 2, 2)},
    )
    return Foreign(made, [{"x": floats(2, 2, 3, 3)}])


def picture_classifier() -> Foreign:
    """A fixed batch of one, as many exporters leave it."""
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "gain", "bias", "mean", "var"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    weights = {
        "k": floats(4, 3, 3, 3),
        **{name: np.abs(floats(4)) for name in ("gain", "bias", "mean", "var")},
        "w": floats(5, 4 * 16),
    }
    made = model(nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT, [1, 5])], weights)
    return Foreign(made, [{"x": floats(1, 3, 8, 8)}])


def volume() -> Foreign:
    made = model(
        [node("Conv", ["x", "k"], ["y"])],
        [("x", FLOAT, ["n", 1, 4, 5, 6])],
        [("y", FLOAT, ["n", 2, 2, 3, 4])],
        {"k": floats(2, 1, 3, 3, 3)},
    )
    return Foreign(made, [{"x": floats(2, 1, 4, 5, 6)}])


def logic() -> Foreign:
    nodes = [node("And", ["a", "b"], ["both"]), node("Not", ["both"], ["y"])]
    made = model(nodes, [(n, BOOL, ["n", 2]) for n in ("a", "b")], [("y", BOOL, ["n", 2])])
    flags = np.array([[True, False], [True, True]])
    return Foreign(made, [{"a": flags, "b": flags[::-1].copy()}])


def bits() -> Foreign:
    made = model(
        [node("BitShift", ["x", "by"], ["y"], direction="LEFT")],
        [("x", UINT8, ["n"])],
        [("y", UINT8, ["n"])],
        {"by": np.uint8(2)},
    )
    return Foreign(made, [{"x": np.arange(200, dtype=np.uint8)}])


def all_integers() -> Foreign:
    kinds = {"i8": INT8, "i16": TensorProto.INT16, "u16": TensorProto.UINT16}
    kinds |= {"u32": TensorProto.UINT32, "u64": TensorProto.UINT64}
    made = model(
        [node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [(name, kind, ["n"]) for name, kind in kinds.items()],
        [(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()],
    )
    feed = {}
    for name, kind in kinds.items():
        limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
        feed[name] = np.array([limits.min, 0, limits.max], limits.dtype)
    return Foreign(made, [feed])


def einsum() -> Foreign:
    made = model(
        [node("Einsum", ["a", "b"], ["y"], equation="bij,bjk->bik")],
        [("a", FLOAT, ["b", 2, 3]), ("b", FLOAT, ["b", 3, 4])],
        [("y", FLOAT, ["b", 2, 4])],
    )
    return Foreign(made, [{"a": floats(3, 2, 3), "b": floats(3, 3, 4)}])


def scatter() -> Foreign:
    made = model(
        [node("ScatterND", ["x", "at", "new"], ["y"])],
        [("x", FLOAT, ["n"]), ("at", INT64, ["m", 1]), ("new", FLOAT, ["m"])],
        [("y", FLOAT, ["n"])],
    )
    return Foreign(made, [{"x": floats(8), "at": np.array([[4], [1]]), "new": floats(2)}])


def running_sum() -> Foreign:
    made = model(
        [node("CumSum", ["x", "axis"], ["y"])],
        [("x", INT32, ["n"])],
        [("y", INT32, ["n"])],
        {"axis": np.int64(0)},
    )
    return Foreign(made, [{"x": np.arange(100, dtype=np.int32)}])


def spectrum() -> Foreign:
    made = model(
        [node("DFT", ["x"], ["y"], axis=1)],
        [("x", FLOAT, ["n", 16, 1])],
        [("y", FLOAT, ["n", 16, 2])],
        opset=17,
    )
    return Foreign(made, [{"x": floats(2, 16, 1)}])


def sampling_grid() -> Foreign:
    made = model(
        [node("GridSample", ["x", "grid"], ["y"])],
        [("x", FLOAT, [1, 1, "h", "w"]), ("grid", FLOAT, [1, "a", "b", 2])],
        [("y", FLOAT, [1, 1, "a", "b"])],
        opset=16,
    )
    return Foreign(made, [{"x": floats(1, 1, 4, 4), "grid": np.tanh(floats(1, 2, 3, 2))}])


def unique() -> Foreign:
    made = model(
        [node("Unique", ["x"], ["y", "", "", "counts"])],
        [("x", INT64, ["n"])],
        [("y", INT64, ["m"]), ("counts", INT64, ["m"])],
    )
    return Foreign(made, [{"x": np.array([3, 1, 3, 3, 2])}])


def inner_sequence() -> Foreign:
    """Its sequence stays inside."""
    nodes = [
        node("SplitToSequence", ["x"], ["parts"], axis=0, keepdims=1),
        node("ConcatFromSequence", ["parts"], ["y"], axis=1),
    ]
    made = model(nodes, [("x", FLOAT, [3, 2])], [("y", FLOAT, [1, 6])])
    return Foreign(made, [{"x": floats(3, 2)}])


def local_function() -> Foreign:
    function = helper.make_function(
        "ours",
        "Twice",
        ["a"],
        ["b"],
        [node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    made = model(
        [node("Twice", ["x"], ["y"], domain="ours")],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        functions=[function],
    )
    return Foreign(made, [{"x": floats(3, 2)}])


def tree() -> Foreign:
    """A decision tree as ai.onnx.ml has them: one node and two leaves."""
    trees = node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[1, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[-1.0, 1.0],
    )
    made = model([trees], [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 1])], ml=True)
    return Foreign(made, [{"x": np.array([[0, 0], [1, 0], [np.nan, 0]], np.float32)}])


def external_weights(folder: Path) -> Foreign:
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 40])],
        [("y", FLOAT, ["n", 30])],
        {"w": floats(40, 30)},
    )
    path = folder / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="model.onnx.data")
    assert (folder / "model.onnx.data").is_file()
    return Foreign(path, [{"x": floats(2, 40)}])


def exported(
    module: Any, inputs: Sequence[Any], names: Sequence[str], folder: Path, **dims: Any
) -> Path:
    """The file that torch's exporter makes; `dims` are the open dimensions by input."""
    import torch

    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            path,
            input_names=list(names),
            output_names=["y"],
            dynamic_shapes=tuple(dims[name] for name in names),
            dynamo=True,
            verbose=False,
        )
    return path


def torch_perceptron(folder: Path) -> Foreign:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(-1))
    path = exported(net, [torch.zeros(2, 6)], ["x"], folder, x={0: torch.export.Dim("batch")})
    return Foreign(path, [{"x": floats(5, 6)}, {"x": floats(100, 6)}])


def torch_transformer(folder: Path) -> Foreign:
    """Tokens of an open number, as language models have them."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.layer(self.embedding(tokens)))

    torch.manual_seed(0)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("words", min=2)}
    path = exported(Tagger(), [torch.zeros(2, 7, dtype=torch.int64)], ["x"], folder, x=sizes)
    tokens = rng().integers(0, 40, (3, 12))
    return Foreign(path, [{"x": tokens}, {"x": tokens[:1, :4].copy()}])


def torch_convolution(folder: Path) -> Foreign:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    path = exported(net, [torch.zeros(2, 3, 16, 16)], ["x"], folder, x={0: torch.export.Dim("n")})
    return Foreign(path, [{"x": floats(3, 3, 16, 16)}])


def converted(estimator: Any, features: np.ndarray, target: np.ndarray | None = None) -> Foreign:
    """A fitted estimator of scikit-learn, without a ZipMap: its answer would be no tensor."""
    from skl2onnx import to_onnx
    from sklearn.base import is_classifier

    estimator.fit(features, target)
    options = {"zipmap": False} if is_classifier(estimator) else None
    made = to_onnx(estimator, features[:1], options=options, target_opset=18)
    (name,) = [each.name for each in made.graph.input]
    return Foreign(made, [{name: features[:7]}, {name: features[:1]}])


def blobs() -> tuple[np.ndarray, np.ndarray]:
    features = floats(60, 4)
    return features, (features[:, 0] + features[:, 1] > 0).astype(np.int64)


def sklearn_with_zipmap() -> Foreign:
    """As skl2onnx exports it by default: its second output is a sequence, which is left out."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    features, target = blobs()
    made = to_onnx(LogisticRegression().fit(features, target), features[:1], target_opset=18)
    (name,) = [each.name for each in made.graph.input]
    return Foreign(made, [{name: features[:7]}])


def sklearn_logistic() -> Foreign:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return converted(make_pipeline(StandardScaler(), LogisticRegression()), *blobs())


def sklearn_forest() -> Foreign:
    from sklearn.ensemble import RandomForestClassifier

    return converted(RandomForestClassifier(5, random_state=0), *blobs())


def sklearn_boosting() -> Foreign:
    from sklearn.ensemble import GradientBoostingRegressor

    features, target = blobs()
    return converted(GradientBoostingRegressor(n_estimators=5), features, target.astype(np.float32))


def sklearn_neighbours() -> Foreign:
    from sklearn.neighbors import KNeighborsClassifier

    return converted(KNeighborsClassifier(3), *blobs())


def sklearn_clusters() -> Foreign:
    from sklearn.cluster import KMeans

    return converted(KMeans(3, n_init=1, random_state=0), blobs()[0])


def sklearn_vectors() -> Foreign:
    from sklearn.svm import SVC

    return converted(SVC(), *blobs())


def sklearn_network() -> Foreign:
    from sklearn.neural_network import MLPClassifier

    return converted(MLPClassifier((5,), max_iter=20, random_state=0), *blobs())


def sklearn_table() -> Foreign:
    """Columns of numbers and texts: a OneHotEncoder refuses an empty text."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    ages = np.array([20, np.nan, 40, 50, 60, 30], object)
    colours = np.array(["red", "green", "red", "blue", "blue", "green"], object)
    table = np.stack([ages, colours], axis=1)
    columns = ColumnTransformer([("n", SimpleImputer(), [0]), ("c", OneHotEncoder(), [1])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0, 1, 1, 0])
    kinds = [("age", FloatTensorType([None, 1])), ("colour", StringTensorType([None, 1]))]
    made = to_onnx(pipeline, initial_types=kinds, options={"zipmap": False}, target_opset=18)
    age = np.array([[35], [np.nan]], np.float32)
    return Foreign(
        made,
        [{"age": age, "colour": texts("red", "blue").reshape(2, 1)}],
        card='{"warm_up": [{"age": [[35]], "colour": [["red"]]}]}',
    )


MODELS: Sequence[Callable[[], Foreign]] = [
    *(centred, softmax_over_time, open_convolution, huge_kernel, integer_division),
    *(reshape_in_groups, string_numbers, string_identity, string_split, label_encoder),
    *(unknown_rank, unknown_output_rank, scalar, scalars_to_range, empty_parts, no_rows, imputer),
    *(optional_input, input_with_a_value, old_format, half_precision, double_precision),
    *(quantized, dynamically_quantized, loop, condition, scan, lstm, gru, embedding),
    *(data_dependent_shape, top_k, boxes, resize, upsampling, picture_classifier, volume, logic),
    *(bits, all_integers, einsum, scatter, running_sum, spectrum, sampling_grid, unique),
    *(
        inner_sequence,
        local_function,
        tree,
        sklearn_logistic,
        sklearn_with_zipmap,
        sklearn_forest,
        sklearn_boosting,
    ),
    *(sklearn_neighbours, sklearn_clusters, sklearn_vectors, sklearn_network, sklearn_table),
]
MODELS_WITH_FILES: Sequence[Callable[[Path], Foreign]] = [
    *(external_weights, torch_perceptron, torch_transformer, torch_convolution),
]
