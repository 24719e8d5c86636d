"""What is published, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.runs import evaluation_of, train
from training.commands.train import main
from training.models import Classifier, build_network
from training.recipes.presets import RECIPES
from training.run import checkpoint


def test_inaccurate_export_is_refused_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Weights a million times smaller or larger than the others become zero or infinite in 16 bits.
    torch.manual_seed(0)
    network = build_network(RECIPES["book-30-30"])
    for layer, factor in ((network[1], 1e-9), (network[3], 1e9)):
        layer.weight.data *= factor
        layer.bias.data *= 0
    path = tmp_path / "wild.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(network, RECIPES["book-30-30"], seed=0, epoch=1))
    folders = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    arguments = [*folders, "--from-checkpoint", str(path), "--also", "fp16"]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "Not published for losing more than 0.1 % accuracy: fp16" in message
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["mnist"]
    assert main([*arguments, "--force"]) == 0
    assert {p.name for p in (tmp_path / "models").iterdir()} == {"mnist", "mnist-fp16"}


def test_no_publish_measures_but_does_not_publish(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        *("--recipe", "fast", "--channels", "8,16", "--epochs", "1"),
        "--train-limit",
        "200",
        "--also",
        "int8",
        "--no-publish",
    )
    assert evaluation_of(run)["precisions"]["int8"]["published"] in ("no", "refused")
    assert not (tmp_path / "models").exists()
    assert isinstance(checkpoint.load(run / "checkpoint.safetensors"), Classifier)
