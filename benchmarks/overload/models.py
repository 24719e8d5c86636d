"""The models under overload: the shipped one, and one whose run takes about 50 ms.

The slow model is the 784-256-10 net of `served_models` with a chain of matrix products beside it,
whose result is multiplied by 0. The chain costs the same for any number of rows, so a batch costs
what one request costs.
"""

from __future__ import annotations

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
    return (ROOT / "models" if name == "fast" else MODELS / "slow") / "mnist" / "1" / "model.onnx"


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
