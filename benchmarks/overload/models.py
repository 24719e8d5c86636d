"""The models under overload: the shipped one, and one whose run takes about 50 ms; and for abuse.

The slow model is the 784-256-10 net of `served_models` with a chain of matrix products beside it,
whose result is multiplied by 0. The chain costs the same for any number of rows, so a batch costs
what one request costs.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.floors.session import make_session
from benchmarks.paths import MODELS, ROOT
from benchmarks.served_models import write_mlp

NAMES = ("fast", "slow")
SLOW_RUN_S = 0.05
_SIDE = 384
_BATCH = 64  # images of the largest batch, at default settings
_RUNS = 9


def repository(name: str) -> Path:
    """A repository with one of the models as `mnist`, version 1."""
    if name == "fast":
        return ROOT / "models"
    folder = MODELS / "slow"
    version = folder / "mnist" / "1"
    version.mkdir(parents=True, exist_ok=True)
    write_slow(version / "model.onnx", SLOW_RUN_S)
    (version / "model.json").write_text('{"batching": true}\n')
    return folder


def onnx_file(name: str) -> Path:
    """The ONNX file of a model; call `repository` first."""
    version = ROOT / "models/mnist/2" if name == "fast" else MODELS / "slow/mnist/1"
    return version / "model.onnx"


def run_seconds(file: Path, images: int = _BATCH) -> float:
    """The median time of a run on an idle core."""
    session = make_session(file)
    inputs = {"image": np.zeros((images, 28, 28), np.uint8)}
    session.run(None, inputs)
    times = []
    for _ in range(_RUNS):
        begin = perf_counter()
        session.run(None, inputs)
        times.append(perf_counter() - begin)
    return statistics.median(times)


def write_slow(file: Path, seconds: float) -> None:
    """Write the slow model, with as many products as take `seconds` on this machine."""
    few = 8
    _write(file, few)
    per_product = run_seconds(file) / few
    _write(file, max(1, round(seconds / per_product)))


def _write(file: Path, products: int) -> None:
    import onnx
    from onnx import helper, numpy_helper

    net = file.with_name("net.onnx")
    write_mlp(net)
    model = onnx.load(net)
    net.unlink()
    random = np.random.default_rng(0)
    orthogonal = np.linalg.qr(random.normal(size=(_SIDE, _SIDE)))[0].astype(np.float32)
    values: dict[str, Any] = {"turn": orthogonal, "none": np.float32(0)}
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    # The mean image makes the chain depend on the input, or ONNX Runtime would compute it once.
    nodes = [
        helper.make_node("ReduceMean", ["scaled"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["turn", "mean"], ["product0"]),
        *[
            helper.make_node("MatMul", [f"product{n}", "turn"], [f"product{n + 1}"])
            for n in range(products)
        ],
        helper.make_node("ReduceSum", [f"product{products}"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "none"], ["nothing"]),
        helper.make_node("Add", ["sums_only", "nothing"], ["sums"]),
    ]
    gemm = next(node for node in graph.node if "sums" in node.output)
    gemm.output[0] = "sums_only"
    ordered = list(graph.node)
    position = ordered.index(gemm) + 1
    del graph.node[:]
    graph.node.extend([*ordered[:position], *nodes, *ordered[position:]])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def write_loop(file: Path, seconds: float, steps: int) -> None:
    """Write a model `x` [n] -> `y` [n] of n steps in a Loop; `steps` steps take `seconds`.

    A run with n at 1, as in a warm-up, is over at once.
    """
    side = 64
    _write_loop(file, side)
    session = make_session(file)
    few = np.ones(1000, np.float32)
    session.run(None, {"x": few})
    begin = perf_counter()
    session.run(None, {"x": few})
    per_step = (perf_counter() - begin) / len(few)
    # The products take most of a step, and their time grows with the cube of the side.
    _write_loop(file, max(2, round(side * (seconds / steps / per_step) ** (1 / 3))))


def _write_loop(file: Path, side: int) -> None:
    from onnx import TensorProto, helper

    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(side, side)))[0].astype(np.float32)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "turn"], ["next"]),
            helper.make_node("Identity", ["go_in"], ["go_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [side, side]),
        ],
    )
    nodes = [
        helper.make_node("Size", ["x"], ["steps"]),
        helper.make_node("Loop", ["steps", "go", "turn"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "none"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    values = {"turn": turn, "none": np.float32(0), "go": np.bool_(True)}
    _save(file, nodes, values, ["n"])


def write_transformer(file: Path) -> None:
    """Write two layers of attention and feed-forward, `x` -> `y` [batch, length, 64]."""
    from onnx import helper

    width, hidden = 64, 256
    random = np.random.default_rng(0)
    values: dict[str, Any] = {"scale": np.float32(1 / math.sqrt(width))}
    nodes: list[Any] = []
    x = "x"
    for layer in range(2):
        for name, shape in (
            ("q", (width, width)), ("k", (width, width)), ("v", (width, width)),
            ("up", (width, hidden)), ("down", (hidden, width)),
        ):  # fmt: skip
            weights = random.normal(0, shape[0] ** -0.5, shape)
            values[f"{name}{layer}"] = weights.astype(np.float32)

        def node(kind: str, *inputs: str, layer: int = layer, **attributes: Any) -> str:
            output = f"{kind}{layer}_{len(nodes)}"
            nodes.append(helper.make_node(kind, inputs, [output], **attributes))
            return output

        q, k, v = (node("MatMul", x, f"{name}{layer}") for name in "qkv")
        turned = node("Transpose", k, perm=[0, 2, 1])
        scores = node("Mul", node("MatMul", q, turned), "scale")
        mixed = node("MatMul", node("Softmax", scores, axis=-1), v)
        x = node("Add", x, mixed)
        up = node("Relu", node("MatMul", x, f"up{layer}"))
        x = node("Add", x, node("MatMul", up, f"down{layer}"))
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    _save(file, nodes, values, ["batch", "length", width])


def _save(file: Path, nodes: list[Any], values: dict[str, Any], shape: list[str | int]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, file)
