"""Whole runs of `mnist-train` as processes, on few images."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.errors import CheckpointError
from training.run import checkpoint


def command(root: Path, *arguments: str) -> list[str]:
    folders = ["--models", str(root / "models"), "--runs", str(root / "runs")]
    return [sys.executable, "-m", "training.commands.train", *folders, *arguments]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, *arguments), capture_output=True, text=True, check=False)


def only_run(root: Path) -> Path:
    (folder,) = (root / "runs").iterdir()
    return folder


FEW = ["--recipe", "fast", "--epochs", "1", "--train-limit", "512", "--no-publish"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert run(tmp_path / name, *FEW, "--seed", seed).returncode == 0
        contents.append((only_run(tmp_path / name) / "checkpoint.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_run_leaves_a_checkpoint_that_can_be_published(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    arguments = ["--recipe", "book", "--epochs", "500", "--train-limit", "2000"]
    with subprocess.Popen(command(tmp_path, *arguments), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        while "epoch  1/500" not in (line := job.stderr.readline()):
            assert line, "the run ended by itself"
        job.send_signal(number)
        rest = job.stderr.read()
        assert job.wait() == status
    kept = only_run(tmp_path) / "checkpoint.safetensors"
    assert str(kept) in rest
    assert checkpoint.read(kept).epoch >= 1
    assert run(tmp_path, "--from-checkpoint", str(kept)).returncode == 0
    assert (tmp_path / "models" / "mnist" / "1" / "model.onnx").exists()


def test_book_prints_each_epoch_what_the_notes_print(tmp_path: Path) -> None:
    done = run(tmp_path, "--recipe", "book", "--epochs", "2", "--train-limit", "1000")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for line in lines:
        assert all(word in line for word in ("training loss", "test loss", "test accuracy"))
    card = json.loads((tmp_path / "models" / "mnist" / "1" / "model.json").read_text())
    assert card["temperature"] == 1.0  # nothing held out, nothing to calibrate on


def test_a_diverging_run_says_so_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    done = run(tmp_path, *FEW, "--lr", "1e30", "--optimizer", "sgd", "--epochs", "3")
    assert done.returncode == 1
    assert "--lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    done = run(tmp_path, "--device", "cuda")
    assert done.returncode == 2
    assert "CUDA" in done.stderr


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"no checkpoint", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            checkpoint.read(path)


def test_a_job_that_is_started_again_trains_nothing_where_a_model_is_published(
    tmp_path: Path,
) -> None:
    few = ["--recipe", "book", "--epochs", "1", "--train-limit", "512", "--unless-published"]
    assert run(tmp_path, *few).returncode == 0
    again = run(tmp_path, *few)
    assert again.returncode == 0
    assert "nothing to train" in again.stdout + again.stderr
    assert [path.name for path in (tmp_path / "models" / "mnist").iterdir()] == ["1"]
    only_run(tmp_path)
