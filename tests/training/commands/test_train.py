"""mnist-train as a process, on few images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.runs import only_run, run, train
from training.commands.train import main

FEW = ["--recipe", "fast", "--channels", "4,8", "--validation-size", "500", "--epochs", "1"]
FEW += ["--train-limit", "512", "--no-publish"]


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    few = [*FEW, "--threads", "2"]
    for name in ("a", "b"):
        assert run(tmp_path / name, *few, "--seed", "7").returncode == 0
    train(tmp_path / "c", *few, "--seed", "8")
    a, b, c = (
        (only_run(tmp_path / name) / "checkpoint.safetensors").read_bytes() for name in "abc"
    )
    assert a == b
    assert a != c


def test_book_prints_training_and_test_metrics_each_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--recipe", "book", "--epochs", "2", "--train-limit", "1000")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for line in lines:
        assert all(word in line for word in ("training loss", "test loss", "test accuracy"))
    card = json.loads((tmp_path / "models" / "mnist" / "1" / "model.json").read_text())
    assert card["temperature"] == 1.0  # nothing held out, nothing to calibrate on


def test_diverging_run_suggests_a_smaller_learning_rate(tmp_path: Path) -> None:
    done = run(tmp_path, *FEW, "--lr", "1e30", "--optimizer", "sgd", "--epochs", "3")
    assert done.returncode == 1
    assert "--lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_unless_published_trains_nothing_if_a_model_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--recipe", "book", "--epochs", "1", "--train-limit", "512", "--unless-published"]
    train(tmp_path, *few)
    capsys.readouterr()
    train(tmp_path, *few)
    assert "nothing to train" in "".join(capsys.readouterr())
    assert [path.name for path in (tmp_path / "models" / "mnist").iterdir()] == ["1"]
    only_run(tmp_path)


def test_resume_refuses_other_options_and_damaged_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "1", "--train-limit", "100", "--no-publish"]
    folder = train(tmp_path, *few)
    for flags in (["--epochs", "3"], ["--recipe", "book"], ["--seed", "3"]):
        assert main(["--resume", str(folder), *flags]) == 2
        assert flags[0] in capsys.readouterr().err
    assert main(["--resume", str(tmp_path)]) == 1
    assert "not the folder of a run" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert main(["--resume", str(tmp_path / "old")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (folder / "state.safetensors").write_bytes(b"cut")
    assert main(["--resume", str(folder)]) == 1
    assert "state.safetensors is not a checkpoint" in capsys.readouterr().err
