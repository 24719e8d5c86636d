"""More foreign models: odd names, sizes, types and graphs that a server meets sooner or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.foreign_models import (
    BOOL,
    DOUBLE,
    FLOAT,
    HALF,
    INT8,
    INT64,
    STRING,
    UINT8,
    Foreign,
    blobs,
    converted,
    exported,
    floats,
    model,
    node,
    one,
    texts,
    value_info,
)


def bare(graph: onnx.GraphProto, *domains: str, opset: int = 18) -> onnx.ModelProto:
    """A model of this graph; other `domains` are at version 1."""
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def names_of_all_kinds() -> Foreign:
    names, answer = ("scope/in put:0", 'b"q\\', "\x1b[31m\n"), "out/日本 1"
    made = model(
        [node("Sum", names, [answer])],
        [(name, FLOAT, ["n", 2]) for name in names],
        [(answer, FLOAT, ["n", 2])],
    )
    return Foreign(made, [{name: floats(3, 2) for name in names}])


def hundreds_of_inputs() -> Foreign:
    names = [f"x{i}" for i in range(300)]
    made = model(
        [node("Sum", names, ["y"])],
        [(name, FLOAT, ["n", 1]) for name in names],
        [("y", FLOAT, ["n", 1])],
    )
    return Foreign(made, [{name: floats(2, 1) + i for i, name in enumerate(names)}])


def hundreds_of_outputs() -> Foreign:
    names = [f"y{i}" for i in range(400)]
    made = model(
        [node("Split", ["x"], names, axis=1, num_outputs=400)],
        [("x", FLOAT, ["n", 400])],
        [(name, FLOAT, ["n", 1]) for name in names],
    )
    return Foreign(made, [{"x": floats(2, 400)}])


def thousand_layers() -> Foreign:
    layers = [node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(1000)]
    made = model(layers, [("v0", FLOAT, ["n", 2])], [("v1000", FLOAT, ["n", 2])])
    return Foreign(made, [{"v0": floats(2, 2)}])


def nested_conditions() -> Foreign:
    def branch(op: str, name: str) -> onnx.GraphProto:
        outputs = [value_info(name, FLOAT, ["n"])]
        return helper.make_graph([node(op, ["x"], [name])], name, [], outputs)

    inner = branch("Neg", "t0")
    for depth in range(1, 20):
        branches = {"then_branch": inner, "else_branch": branch("Abs", f"e{depth}")}
        condition = node("If", ["c"], [f"t{depth}"], **branches)
        outputs = [value_info(f"t{depth}", FLOAT, ["n"])]
        inner = helper.make_graph([condition], f"body{depth}", [], outputs)
    outer = node("If", ["c"], ["y"], then_branch=inner, else_branch=branch("Abs", "e20"))
    made = model([outer], [("x", FLOAT, ["n"]), ("c", BOOL, [])], [("y", FLOAT, ["n"])])
    return Foreign(made, [{"x": floats(3), "c": np.array(flag)} for flag in (True, False)])


def all_floats() -> Foreign:
    """NaN, both zeros, the smallest and the largest numbers come back bit by bit."""
    kinds = {"half": (HALF, np.float16), "single": (FLOAT, np.float32)}
    kinds["double"] = (DOUBLE, np.float64)
    made = model(
        [node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [(name, kind, ["n"]) for name, (kind, _) in kinds.items()],
        [(f"{name}_out", kind, ["n"]) for name, (kind, _) in kinds.items()],
    )
    feed = {}
    for name, (_, dtype) in kinds.items():
        limits = np.finfo(dtype)
        some = [np.nan, 0.0, -0.0, limits.smallest_subnormal, limits.max, -limits.max, 0.1, 1 / 3]
        feed[name] = np.array(some, dtype)
    infinite = {name: np.array([np.inf, -np.inf], dtype) for name, (_, dtype) in kinds.items()}
    return Foreign(made, [feed, infinite])


def wide_integers() -> Foreign:
    """A double holds none of them."""
    made = model(
        [node("Identity", ["i"], ["i_out"]), node("Identity", ["u"], ["u_out"])],
        [("i", INT64, ["n"]), ("u", TensorProto.UINT64, ["n"])],
        [("i_out", INT64, ["n"]), ("u_out", TensorProto.UINT64, ["n"])],
    )
    signed = np.array([-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1])
    return Foreign(made, [{"i": signed, "u": np.array([0, 2**64 - 1, 2**63, 2**53 + 1], "u8")}])


def every_datatype_at_once() -> Foreign:
    kinds = {"f": FLOAT, "d": DOUBLE, "h": HALF, "b": BOOL, "s": STRING, "i": INT64}
    made = model(
        [node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [(name, kind, ["n"]) for name, kind in kinds.items()],
        [(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()],
    )
    feed = {"f": floats(2), "d": floats(2).astype(float), "h": floats(2).astype(np.float16)}
    feed |= {"b": np.array([True, False]), "s": texts("q", "é"), "i": np.array([1, 2])}
    return Foreign(made, [feed])


def no_inputs() -> Foreign:
    constant = node("Constant", [], ["y"], value_floats=[1.0, 2.0])
    return Foreign(model([constant], [], [("y", FLOAT, [2])]), [{}])


def input_as_output() -> Foreign:
    x = value_info("x", FLOAT, ["n"])
    return Foreign(bare(helper.make_graph([], "g", [x], [x])), [{"x": floats(3)}])


def weight_as_output() -> Foreign:
    made = model(
        [node("Neg", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"]), ("w", FLOAT, [2])],
        {"w": floats(2)},
    )
    return Foreign(made, [{"x": floats(3)}])


def unused_input() -> Foreign:
    made = model(
        [node("Neg", ["x"], ["y"])],
        [("x", FLOAT, ["n"]), ("unused", INT64, ["m"])],
        [("y", FLOAT, ["n"])],
    )
    return Foreign(made, [{"x": floats(3), "unused": np.arange(2)}])


def size_of_zero() -> Foreign:
    made = model([node("Shape", ["x"], ["y"])], [("x", FLOAT, ["n", 0])], [("y", INT64, [2])])
    return Foreign(made, [{"x": floats(3, 0)}])


def twenty_dimensions() -> Foreign:
    shape = ["n", *[1] * 18, 2]
    return one("Neg", FLOAT, shape, [floats(2, *[1] * 18, 2)])


def four_bit_weights() -> Foreign:
    weights = helper.make_tensor("w", TensorProto.INT4, [4], [1, 2, -3, 4])
    graph = helper.make_graph(
        [node("DequantizeLinear", ["w", "scale"], ["d"]), node("Add", ["x", "d"], ["y"])],
        "g",
        [value_info("x", FLOAT, ["n", 4])],
        [value_info("y", FLOAT, ["n", 4])],
        [weights, numpy_helper.from_array(np.float32(0.5), "scale")],
    )
    return Foreign(bare(graph, opset=21), [{"x": floats(3, 4)}])


def eight_bit_floats_inside() -> Foreign:
    nodes = [
        node("Cast", ["x"], ["q"], to=TensorProto.FLOAT8E4M3FN),
        node("Cast", ["q"], ["y"], to=FLOAT),
    ]
    made = model(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])], opset=19)
    return Foreign(made, [{"x": floats(5)}])


def operator_of_microsoft() -> Foreign:
    graph = helper.make_graph(
        [node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        "g",
        [value_info("x", FLOAT, ["n", 3])],
        [value_info("y", FLOAT, ["n", 3])],
    )
    return Foreign(bare(graph, "com.microsoft"), [{"x": floats(3, 3)}])


def oldest_operators() -> Foreign:
    return one("Relu", FLOAT, ["n", 3], [floats(2, 3)], opset=6)


def newest_operators() -> Foreign:
    made = model(
        [node("Attention", ["q", "k", "v"], ["y"])],
        [(name, FLOAT, ["batch", 2, "time", 4]) for name in "qkv"],
        [("y", FLOAT, ["batch", 2, "time", 4])],
        opset=23,
    )
    return Foreign(made, [{name: floats(2, 2, 3, 4) + i for i, name in enumerate("qkv")}])


def texts_joined() -> Foreign:
    made = model(
        [node("StringConcat", ["a", "b"], ["y"])],
        [("a", STRING, ["n", 2]), ("b", STRING, ["n", 2])],
        [("y", STRING, ["n", 2])],
        opset=20,
    )
    a = texts("a", "é\U0001f600", "", "\u2028").reshape(2, 2)
    b = texts('"\\', "\x01\x1f\x7f", "\0", "x" * 3000).reshape(2, 2)
    return Foreign(made, [{"a": a, "b": b}])


def one_text() -> Foreign:
    return one("Identity", STRING, [], [np.array("hé", object)])


def texts_in_parts() -> Foreign:
    """The longest row decides how many columns all rows have, so rows must not be joined."""
    made = model(
        [node("StringSplit", ["x"], ["y", "count"], delimiter=",")],
        [("x", STRING, ["n"])],
        [("y", STRING, ["n", "parts"]), ("count", INT64, ["n"])],
        opset=20,
    )
    return Foreign(made, [{"x": texts("a,b", "c", "d,e,f")}, {"x": texts("a,b")}])


def counted_words() -> Foreign:
    counting = {"mode": "TF", "min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0}
    grams = {"ngram_counts": [0], "ngram_indexes": [0, 1, 2], "pool_strings": ["a", "b", "c"]}
    made = model(
        [node("TfIdfVectorizer", ["x"], ["y"], **counting, **grams)],
        [("x", STRING, ["n", "words"])],
        [("y", FLOAT, ["n", 3])],
    )
    return Foreign(made, [{"x": texts("a", "b", "a", "z").reshape(2, 2)}])


def optional_output() -> Foreign:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"]))
    graph = helper.make_graph(
        [node("Optional", ["x"], ["y"])],
        "g",
        [value_info("x", FLOAT, ["n"])],
        [helper.make_value_info("y", kind)],
    )
    return Foreign(bare(graph), [{"x": floats(2)}])


def loop_that_collects() -> Foreign:
    body = helper.make_graph(
        [
            node("Identity", ["more"], ["again"]),
            node("Cast", ["i"], ["number"], to=FLOAT),
            node("Add", ["number", "x"], ["row"]),
        ],
        "body",
        [value_info("i", INT64, []), value_info("more", BOOL, [])],
        [value_info("again", BOOL, []), value_info("row", FLOAT, ["n"])],
    )
    made = model(
        [node("Loop", ["count", ""], ["y"], body=body)],
        [("count", INT64, []), ("x", FLOAT, ["n"])],
        [("y", FLOAT, ["count", "n"])],
    )
    return Foreign(made, [{"count": np.array(count), "x": floats(2)} for count in (3, 0)])


def function_in_a_function() -> Foreign:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    twice = helper.make_function(
        "ours", "Two", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets
    )
    calls = [
        node("Two", ["a"], ["t"], domain="ours"),
        node("Two", ["t"], ["b"], domain="ours"),
    ]
    four = helper.make_function("ours", "Four", ["a"], ["b"], calls, opsets)
    made = model(
        [node("Four", ["x"], ["y"], domain="ours")],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        functions=[twice, four],
    )
    return Foreign(made, [{"x": floats(3, 2)}])


def batches_of_two_sizes() -> Foreign:
    made = model(
        [node("Concat", ["a", "b"], ["y"], axis=0)],
        [("a", FLOAT, ["m", 2]), ("b", FLOAT, ["k", 2])],
        [("y", FLOAT, ["sum", 2])],
    )
    return Foreign(made, [{"a": floats(2, 2), "b": floats(3, 2)}])


def sparse_weights() -> Foreign:
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 3]), "places")
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value_info("x", FLOAT, ["n", 2])],
        [value_info("y", FLOAT, ["n", 2])],
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 2]))
    return Foreign(bare(graph), [{"x": floats(3, 2)}])


def shape_from_contents() -> Foreign:
    made = model(
        [node("ConstantOfShape", ["x"], ["y"])], [("x", INT64, ["rank"])], [("y", FLOAT, None)]
    )
    return Foreign(made, [{"x": np.array(sizes, np.int64)} for sizes in ([2, 3], [], [0, 3])])


def shape_that_is_declared_wrong() -> Foreign:
    """The output has two dimensions, whatever its type says."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Concat", ["s", "one"], ["both"], axis=0),
        node("Reshape", ["x", "both"], ["y"]),
    ]
    made = model(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])], {"one": np.array([1])})
    return Foreign(made, [{"x": floats(3)}])


def nothing_left() -> Foreign:
    nodes = [node("Greater", ["x", "limit"], ["keep"]), node("Compress", ["x", "keep"], ["y"])]
    made = model(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["m"])], {"limit": np.float32(100)})
    return Foreign(made, [{"x": floats(4)}])


def integer_product() -> Foreign:
    made = model(
        [node("MatMulInteger", ["a", "b"], ["y"])],
        [("a", UINT8, ["n", 3]), ("b", INT8, [3, 2])],
        [("y", TensorProto.INT32, ["n", 2])],
    )
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return Foreign(made, [{"a": a, "b": np.full((3, 2), -1, np.int8)}])


def classes_as_texts() -> Foreign:
    classify = node(
        "LinearClassifier",
        ["x"],
        ["label", "y"],
        domain="ai.onnx.ml",
        classlabels_strings=["é", 'b"', "c"],
        coefficients=[1.0, 0, 0, 1, 1, 1],
        intercepts=[0.0, 0, 0],
        post_transform="SOFTMAX",
    )
    made = model(
        [classify],
        [("x", FLOAT, ["n", 2])],
        [("label", STRING, ["n"]), ("y", FLOAT, ["n", 3])],
        ml=True,
    )
    return Foreign(made, [{"x": floats(3, 2)}, {"x": np.array([[np.nan, 1]], np.float32)}])


def sklearn_histogram_boosting() -> Foreign:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return converted(HistGradientBoostingClassifier(max_iter=5), *blobs())


def torch_recurrent(folder: Path) -> Foreign:
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0]

    torch.manual_seed(0)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)}
    path = exported(Recurrent(), [torch.zeros(2, 6, 4)], ["x"], folder, x=sizes)
    return Foreign(path, [{"x": floats(3, 7, 4)}])


def torch_half(folder: Path) -> Foreign:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net, sizes = nn.Linear(4, 3).half(), {0: torch.export.Dim("batch")}
    path = exported(net, [torch.zeros(2, 4, dtype=torch.half)], ["x"], folder, x=sizes)
    return Foreign(path, [{"x": floats(3, 4).astype(np.float16)}])


MODELS: Sequence[Callable[[], Foreign]] = [
    *(names_of_all_kinds, hundreds_of_inputs, hundreds_of_outputs, thousand_layers),
    *(nested_conditions, all_floats, wide_integers, every_datatype_at_once, no_inputs),
    *(input_as_output, weight_as_output, unused_input, size_of_zero, twenty_dimensions),
    *(four_bit_weights, eight_bit_floats_inside, operator_of_microsoft, oldest_operators),
    *(newest_operators, texts_joined, one_text, texts_in_parts, counted_words, optional_output),
    *(loop_that_collects, function_in_a_function, batches_of_two_sizes, sparse_weights),
    *(shape_from_contents, shape_that_is_declared_wrong, nothing_left, integer_product),
    *(classes_as_texts, sklearn_histogram_boosting),
]
MODELS_WITH_FILES: Sequence[Callable[[Path], Foreign]] = [torch_recurrent, torch_half]
