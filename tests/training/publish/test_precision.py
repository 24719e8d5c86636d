"""fp16 and int8 exports of a real network: measured, reported, and refused when they are worse."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch

from tests.training.small_run import evaluation_of, train
from training.commands.train import main
from training.models import Classifier, build_network
from training.publish.precision import loses_too_much
from training.recipes.presets import RECIPES
from training.run import checkpoint

SMALL = ["--recipe", "fast", "--channels", "8,16", "--epochs", "1", "--train-limit", "6000"]


def test_fp16_and_int8_are_measured_reported_and_published_beside_fp32(tmp_path: Path) -> None:
    arguments = ["--also", "fp16", "int8", "--force", "--batch-size", "64"]
    run = train(tmp_path, *SMALL, *arguments)
    found = evaluation_of(run)["precisions"]
    assert list(found) == ["fp32", "fp16", "int8"]
    assert found["fp32"]["accuracy"] == evaluation_of(run)["accuracy"] > 0.8
    for precision in ("fp16", "int8"):
        assert found[precision]["accuracy"] > found["fp32"]["accuracy"] - 0.02
        assert found[precision]["bytes"] < found["fp32"]["bytes"]
        assert set(found[precision]["microseconds"]) == {"1", "64"}
        folder = tmp_path / "models" / f"mnist-{precision}" / "1"
        card = json.loads((folder / "model.json").read_text())
        assert (card["model"], card["precision"]) == (f"mnist-{precision}", precision)
        assert card["accuracy"] == found[precision]["accuracy"]
        graph = onnx.load(folder / "model.onnx")
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
        session = ort.InferenceSession(folder / "model.onnx")
        (image,) = session.get_inputs()
        assert (image.type, image.shape) == ("tensor(uint8)", ["batch", 28, 28])
        assert [o.type for o in session.get_outputs()] == ["tensor(float)"] * 2
    kinds = {
        tensor.data_type
        for tensor in onnx.load(tmp_path / "models/mnist-int8/1/model.onnx").graph.initializer
    }
    assert onnx.TensorProto.INT8 in kinds
    page = (run / "report.html").read_text()
    assert "Precisions" in page
    assert "int8" in page


def test_what_loses_more_than_a_thousandth_is_refused_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Weights of one unit a million times those of another are zero in 16 bits, or infinite.
    torch.manual_seed(0)
    network = build_network(RECIPES["book-30-30"])
    for layer, factor in ((network[1], 1e-9), (network[3], 1e9)):
        layer.weight.data *= factor
        layer.bias.data *= 0
    path = tmp_path / "wild.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(network, RECIPES["book-30-30"], 0, 1))
    folders = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    arguments = [*folders, "--from-checkpoint", str(path), "--also", "fp16"]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "Not published for losing more than 0.1 % accuracy: fp16" in message
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["mnist"]
    assert main([*arguments, "--force"]) == 0
    assert {p.name for p in (tmp_path / "models").iterdir()} == {"mnist", "mnist-fp16"}


def test_a_thousandth_less_is_allowed() -> None:
    assert not loses_too_much({"accuracy": 0.994}, {"accuracy": 0.995})
    assert not loses_too_much({"accuracy": 0.996}, {"accuracy": 0.995})
    assert loses_too_much({"accuracy": 0.9939}, {"accuracy": 0.995})


def test_nothing_is_published_that_was_not_asked_for(tmp_path: Path) -> None:
    run = train(tmp_path, *SMALL, "--train-limit", "200", "--also", "int8", "--no-publish")
    assert evaluation_of(run)["precisions"]["int8"]["published"] in ("no", "refused")
    assert not (tmp_path / "models").exists()
    assert isinstance(checkpoint.load(run / "checkpoint.safetensors"), Classifier)
