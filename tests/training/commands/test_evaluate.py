"""`mnist-evaluate` on real models: the shipped one, checkpoints, and what others make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.training.small_run import evaluation_of, train
from training.commands.evaluate import main
from training.data import mnist as data
from training.models import Classifier, build_network
from training.publish.export import export
from training.recipes.presets import RECIPES

SHIPPED = Path(__file__).parents[3] / "models" / "mnist" / "1"


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


def test_the_shipped_model_is_what_its_card_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "report")]
    assert main([str(SHIPPED / "model.onnx"), *arguments]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    card = json.loads((SHIPPED / "model.json").read_text())
    assert figures["accuracy"] == card["accuracy"]
    assert figures["loss"] == pytest.approx(card["loss"], rel=1e-3)
    ours, theirs = figures["before_calibration"], card["evaluation"]["before_calibration"]
    assert ours["brier"] == pytest.approx(theirs["brier"], rel=1e-3)
    assert figures["calibration_error"] < 0.005
    assert figures["microseconds"]["1"] > 1
    text = capsys.readouterr().out
    for words in ("99.61%", "Brier", "calibration error", "bits", "coverage"):
        assert words in text
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000


def test_a_checkpoint_is_evaluated_as_it_would_be_published(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "1", "--train-limit", "500", "--no-publish"]
    run = train(tmp_path, *few, "--lr", "0.3", "--validation-size", "300")
    target = tmp_path / "f.json"
    assert main([str(run / "checkpoint.safetensors"), "--json", str(target)]) == 0
    theirs, ours = evaluation_of(run), json.loads(target.read_text())
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["confusion"] == theirs["confusion"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("softmax", [True, False], ids=["probabilities", "logits"])
def test_a_foreign_model_with_floats_and_a_fixed_batch(tmp_path: Path, *, softmax: bool) -> None:
    model = foreign(tmp_path / "x.onnx", "OUTPUT", softmax=softmax)
    assert main([str(model), "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    (weight,) = onnx.load(model).graph.initializer
    mnist = data.load_mnist()
    pixels = mnist.test_images.numpy().reshape(-1, 784).astype(np.float32) / np.float32(255)
    right = (pixels @ numpy_helper.to_array(weight)).argmax(1) == mnist.test_labels.numpy()
    assert figures["accuracy"] == pytest.approx(right.mean(), abs=2e-4)
    assert set(figures["microseconds"]) == {"7"}
    assert figures["loss"] == pytest.approx(figures["before_calibration"]["loss"])


def test_an_image_folder_and_idx_files_are_taken_by_one_flag(tmp_path: Path) -> None:
    mnist = data.load_mnist()
    (tmp_path / "images").mkdir()
    for index in range(50):
        Image.fromarray(mnist.test_images[index].numpy()).save(
            tmp_path / "images" / f"img_{index}.png"
        )
    np.save(tmp_path / "images" / "labels.npy", mnist.test_labels[:50].numpy())
    model, target = str(SHIPPED / "model.onnx"), tmp_path / "f.json"
    for where, flags, count in (
        (tmp_path / "images", [], 5),
        (tmp_path / "images", ["--all"], 50),
        (data.BUNDLE, [], 10_000),
    ):
        assert main([model, "--data", str(where), *flags, "--json", str(target)]) == 0
        figures = json.loads(target.read_text())
        assert figures["images"] == count
        assert figures["accuracy"] > 0.97


def test_what_cannot_be_evaluated_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    assert main([str(tmp_path / "x.onnx")]) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert main([str(tmp_path / "none.onnx")]) == 1
    assert main([str(SHIPPED / "model.onnx"), "--data", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    three = Classifier(build_network(RECIPES["book-30-30"], classes=3)).eval()
    (tmp_path / "three.onnx").write_bytes(export(three, {}))
    assert main([str(tmp_path / "three.onnx")]) == 2
    assert "tells 3 classes apart" in capsys.readouterr().err


def test_probabilities_of_ours_are_those_that_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cold = Classifier(build_network(RECIPES["book-30-30"]), temperature=0.1).eval()
    (tmp_path / "x.onnx").write_bytes(export(cold, {}))
    target = tmp_path / "f.json"
    assert main([str(tmp_path / "x.onnx"), "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["loss"] != pytest.approx(figures["before_calibration"]["loss"], rel=0.01)
