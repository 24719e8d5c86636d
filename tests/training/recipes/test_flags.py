"""Recipes from the command line and from files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import train
from training.commands.train import main
from training.recipes.recipe import flag_of, knobs


def test_non_numeric_batch_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--batch-size", "half"])
    assert stopped.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_every_knob_is_a_flag() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "training.commands.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for knob in knobs():
        assert flag_of(knob) in text


def test_invalid_config_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    for content, message in (
        ("speed = 3", "no knob 'speed'"),
        ("epochs = 'many'", "epochs is 'many'"),
        ("epochs = ", "is not TOML"),
        ("recipe = 'none'", "no recipe 'none'"),
        ("learning_rate = -1", "--lr is -1"),
    ):
        path.write_text(content)
        assert main(["--config", str(path), "--runs", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    path.write_text("recipe = 'book-30-30'\nbatch_size = 'full'\nhidden = [9]\nlr = 1\nepochs = 1")
    run = train(tmp_path, "--config", str(path), "--train-limit", "100", "--no-publish")
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["hidden"], recipe["learning_rate"]) == (0, [9], 1.0)
