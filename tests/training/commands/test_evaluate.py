"""mnist-evaluate on the shipped model, on checkpoints, and on other data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.runs import evaluation_of, train
from training.commands.evaluate import main
from training.data import mnist as data
from training.models import Classifier, build_network
from training.publish.export import export
from training.recipes.presets import RECIPES

SHIPPED = Path(__file__).parents[3] / "models" / "mnist" / "1"


def test_shipped_model_has_the_metrics_of_its_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "report")]
    assert main([str(SHIPPED / "model.onnx"), *arguments]) == 0
    metrics = json.loads((tmp_path / "f.json").read_text())
    card = json.loads((SHIPPED / "model.json").read_text())
    assert metrics["accuracy"] == card["accuracy"]
    assert metrics["loss"] == pytest.approx(card["loss"], rel=1e-3)
    ours, theirs = metrics["before_calibration"], card["evaluation"]["before_calibration"]
    assert ours["brier"] == pytest.approx(theirs["brier"], rel=1e-3)
    assert metrics["calibration_error"] < 0.005
    assert metrics["microseconds"]["1"] > 1
    text = capsys.readouterr().out
    for words in ("99.61%", "Brier", "calibration error", "bits", "coverage"):
        assert words in text
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000


def test_checkpoint_is_evaluated_as_its_export(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "1", "--train-limit", "500", "--no-publish"]
    run = train(tmp_path, *few, "--lr", "0.3", "--validation-size", "300")
    target = tmp_path / "f.json"
    assert main([str(run / "checkpoint.safetensors"), "--json", str(target)]) == 0
    theirs, ours = evaluation_of(run), json.loads(target.read_text())
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["confusion"] == theirs["confusion"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_data_flag_takes_image_folders_and_idx_files(tmp_path: Path) -> None:
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
        metrics = json.loads(target.read_text())
        assert metrics["images"] == count
        assert metrics["accuracy"] > 0.97


def test_invalid_models_and_data_are_named(
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
