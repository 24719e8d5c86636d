"""Small ONNX models for situations that the shipped model does not cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def publish_slow_model(repository: Path, name: str = "mnist", size: int = 1024) -> None:
    """A classifier of 28x28 images that takes some hundred milliseconds per image."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.float32(1 / 255),
        "flat": np.array([-1, 784]),
        "widen": rng.normal(0, 0.01, (784, size * 4)).astype(np.float32),
        "mix": rng.normal(0, 1 / 64, (size * 4, size * 4)).astype(np.float32),
        "narrow": rng.normal(0, 0.01, (size * 4, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "widen"], ["h0"]),
        *[helper.make_node("MatMul", [f"h{i}", "mix"], [f"h{i + 1}"]) for i in range(30)],
        helper.make_node("MatMul", ["h30", "narrow"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 28, 28])],
        [
            helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", 10])
            for out in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    # It is too slow to be verified when it is loaded.
    (folder / "model.json").write_text('{"batching": true}')


# Datatype of the protocol -> element type of ONNX.
ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


def publish_identity(repository: Path, datatype: str) -> None:
    """A model `identity_<datatype>` that returns its input `x` [N,2] as `y` [N,2]."""
    publish(
        repository,
        f"identity_{datatype.lower()}",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", ELEMENT_TYPES[datatype], ["batch", 2])],
        [("y", ELEMENT_TYPES[datatype], ["batch", 2])],
    )


def publish_sum(repository: Path) -> None:
    """A model `sum` of two inputs and two outputs: FP32 [N,3] `total` = a + b, `gap` = a - b."""
    of_rows = ["batch", 3]
    publish(
        repository,
        "sum",
        [
            helper.make_node("Add", ["a", "b"], ["total"]),
            helper.make_node("Sub", ["a", "b"], ["gap"]),
        ],
        [(name, TensorProto.FLOAT, of_rows) for name in ("a", "b")],
        [(name, TensorProto.FLOAT, of_rows) for name in ("total", "gap")],
    )


def publish_log(repository: Path) -> None:
    """A model `log`: FP32 [N] `x` to its natural logarithm `y`, which may be NaN or infinite."""
    publish(
        repository,
        "log",
        [helper.make_node("Log", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch"])],
        [("y", TensorProto.FLOAT, ["batch"])],
    )


def publish_scalar(repository: Path) -> None:
    """A model `scalar` without a batch: INT64 [] `x` to `y` = 2 x."""
    publish(
        repository,
        "scalar",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.INT64, [])],
        [("y", TensorProto.INT64, [])],
    )


def publish_loop(repository: Path, name: str = "loop", *, is_endless: bool = False) -> None:
    """A model of INT64 [] `n` to FP32 [1] `y` = n, by as many additions, one after another.

    If it `is_endless`, any `n` makes 10**12 additions. They take weeks; ONNX Runtime ends them when
    it is asked to.
    """
    step = helper.make_graph(
        [
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Add", ["before", "one"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    publish(
        repository,
        name,
        [
            helper.make_node("Constant", [], ["zero"], value_floats=[0.0]),
            helper.make_node("Constant", [], ["endless"], value_int=10**12),
            helper.make_node("Add", ["n", "endless"], ["more"]),
            helper.make_node("Loop", ["more" if is_endless else "n", "", "zero"], ["y"], body=step),
        ],
        [("n", TensorProto.INT64, [])],
        [("y", TensorProto.FLOAT, [1])],
    )


def publish_pool(repository: Path, name: str = "pool", kernel: int = 401) -> None:
    """A model of FP32 [1,1,512,W] `x` to `y` of the same shape, by one node that is slow.

    With W = 512 the node takes some minutes, and ONNX Runtime ends runs between nodes only.
    """
    node = helper.make_node(
        "LpPool", ["x"], ["y"], kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, p=2
    )
    shape: list[str | int] = [1, 1, 512, "width"]
    publish(
        repository,
        name,
        [node],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )


def _crashing_node(output: str) -> onnx.NodeProto:
    """A node that ends its process by SIGABRT when it runs.

    ONNX Runtime 1.32 does not check the order of its limits, and C++ does. Found by a random search
    over 3,839 graphs of one node.
    """
    return helper.make_node("RandomUniform", [], [output], low=1.0, high=-1.0, shape=[2])


def publish_crashing(repository: Path, name: str = "crashing") -> None:
    """A model of FP32 [2] `x` to `y` that crashes ONNX Runtime on every input."""
    publish(
        repository,
        name,
        [_crashing_node("r"), helper.make_node("Add", ["x", "r"], ["y"])],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
    )


def publish_trap(repository: Path, name: str = "trap") -> None:
    """A model of BOOL [] `spring` to FP32 [2] `y` that crashes ONNX Runtime if `spring` is true."""
    y = [helper.make_tensor_value_info("v", TensorProto.FLOAT, [2])]
    calm = helper.make_node("Constant", [], ["v"], value_floats=[0.0, 0.0])
    choice = helper.make_node(
        "If",
        ["spring"],
        ["y"],
        then_branch=helper.make_graph([_crashing_node("v")], "then", [], y),
        else_branch=helper.make_graph([calm], "else", [], y),
    )
    publish(
        repository,
        name,
        [choice],
        [("spring", TensorProto.BOOL, [])],
        [("y", TensorProto.FLOAT, [2])],
    )


def publish(
    repository: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[str | int]]],
    outputs: list[tuple[str, int, list[str | int]]],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def publish_judging(repository: Path, name: str = "judge") -> None:
    """A classifier that judges its images, by their first row.

    The logits are its first ten pixels / 16, `reason` is the eleventh, an image without one is
    accepted, and the set holds the digits whose logit is at most 1 below the largest.
    """
    publish(
        repository,
        name,
        [
            *[
                helper.make_node("Constant", [], [key], value_ints=[value])
                for key, value in (("0", 0), ("1", 1), ("10", 10), ("11", 11))
            ],
            helper.make_node("Constant", [], ["scale"], value_float=1 / 16),
            helper.make_node("Constant", [], ["width"], value_float=1.0),
            helper.make_node("Slice", ["image", "0", "1", "1"], ["top"]),
            helper.make_node("Squeeze", ["top", "1"], ["row"]),
            helper.make_node("Slice", ["row", "0", "10", "1"], ["ten"]),
            helper.make_node("Cast", ["ten"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
            helper.make_node("ReduceMax", ["logits", "1"], ["largest"], keepdims=1),
            helper.make_node("Sub", ["largest", "width"], ["least"]),
            helper.make_node("GreaterOrEqual", ["logits", "least"], ["prediction_set"]),
            helper.make_node("Slice", ["row", "10", "11", "1"], ["eleventh"]),
            helper.make_node("Squeeze", ["eleventh", "1"], ["reason"]),
            helper.make_node("Cast", ["reason"], ["code"], to=TensorProto.INT64),
            helper.make_node("Equal", ["code", "0"], ["accepted"]),
        ],
        [("image", TensorProto.UINT8, ["batch", 28, 28])],
        [
            ("logits", TensorProto.FLOAT, ["batch", 10]),
            ("probabilities", TensorProto.FLOAT, ["batch", 10]),
            ("accepted", TensorProto.BOOL, ["batch"]),
            ("reason", TensorProto.UINT8, ["batch"]),
            ("prediction_set", TensorProto.BOOL, ["batch", 10]),
        ],
    )


def judged_image(digit: int, reason: int = 0, second: int | None = None) -> np.ndarray:
    """An image uint8 [28,28] that the model of `publish_judging` takes for this digit.

    `second` is another digit of its prediction set.
    """
    image = np.zeros((28, 28), np.uint8)
    image[0, digit] = 160
    if second is not None:
        image[0, second] = 150
    image[0, 10] = reason
    return image


def external_model(path: Path, place: str) -> None:
    """Write a model of FP32 [N] `x` to `y` that takes its only weight from the file at `place`."""
    weight = onnx.TensorProto(
        name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value=place)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n"])],
        [helper.make_tensor_value_info("y", 1, ["n"])],
        [weight],
    )
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
