"""Small ONNX models for situations that the real one does not get into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def publish_slow_model(repository: Path, name: str = "mnist", size: int = 1024) -> None:
    """A classifier of 28x28 images that takes some hundred milliseconds an image."""
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
