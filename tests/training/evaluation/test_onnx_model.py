"""Classifiers in ONNX files, of mnist-train and of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from training.commands.evaluate import main
from training.data import mnist as data
from training.models import Classifier, build_network
from training.publish.export import export
from training.recipes.presets import RECIPES


def foreign(path: Path, output: str, *, softmax: bool) -> Path:
    """A linear classifier as others export it: 784 floats in, one output, batches of 7 only."""
    weight = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores" if softmax else output])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], [output], axis=-1))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 784])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [7, 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("softmax", [True, False], ids=["probabilities", "logits"])
def test_foreign_model_with_floats_and_a_fixed_batch(tmp_path: Path, *, softmax: bool) -> None:
    model = foreign(tmp_path / "x.onnx", "OUTPUT", softmax=softmax)
    assert main([str(model), "--json", str(tmp_path / "f.json")]) == 0
    metrics = json.loads((tmp_path / "f.json").read_text())
    (weight,) = onnx.load(model).graph.initializer
    mnist = data.load_mnist()
    pixels = mnist.test_images.numpy().reshape(-1, 784).astype(np.float32) / np.float32(255)
    right = (pixels @ numpy_helper.to_array(weight)).argmax(1) == mnist.test_labels.numpy()
    assert metrics["accuracy"] == pytest.approx(right.mean(), abs=2e-4)
    assert set(metrics["microseconds"]) == {"7"}
    assert metrics["loss"] == pytest.approx(metrics["before_calibration"]["loss"])


def test_calibrated_probabilities_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cold = Classifier(build_network(RECIPES["book-30-30"]), temperature=0.1).eval()
    (tmp_path / "x.onnx").write_bytes(export(cold, {}))
    target = tmp_path / "f.json"
    assert main([str(tmp_path / "x.onnx"), "--json", str(target)]) == 0
    metrics = json.loads(target.read_text())
    assert metrics["loss"] != pytest.approx(metrics["before_calibration"]["loss"], rel=0.01)
