"""A small model with a judgement: linear logits, accepted if they are clear enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.core.digits import REASONS


def write_judging_model(folder: Path, least: float = 0.5) -> Path:
    """Write folder/model.onnx, which accepts rows whose largest probability exceeds `least`."""
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        "scale": np.float32(255),
        "flat": np.array([-1, 784]),
        "weights": random.normal(0, 0.3, (784, 10)).astype(np.float32),
        "least": np.float32(least),
        "member": np.float32(0.01),
        "fine": np.uint8(0),
        "unsure": np.uint8(REASONS.index("unsure")),
        "last": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Div", ["float", "scale"], ["scaled"]),
        node("Reshape", ["scaled", "flat"], ["rows"]),
        node("MatMul", ["rows", "weights"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
        node("ReduceMax", ["probabilities", "last"], ["largest"], keepdims=0),
        node("Greater", ["largest", "least"], ["accepted"]),
        node("Where", ["accepted", "fine", "unsure"], ["reason"]),
        node("Greater", ["probabilities", "member"], ["prediction_set"]),
    ]
    outputs: dict[str, tuple[Any, list[str | int | None]]] = {
        "logits": (TensorProto.FLOAT, ["batch", 10]),
        "probabilities": (TensorProto.FLOAT, ["batch", 10]),
        "accepted": (TensorProto.BOOL, ["batch"]),
        "reason": (TensorProto.UINT8, ["batch"]),
        "prediction_set": (TensorProto.BOOL, ["batch", 10]),
    }
    graph = helper.make_graph(
        nodes,
        "judging",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 28, 28])],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder
