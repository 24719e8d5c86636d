"""Stopping a run by a signal."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.training.runs import command, only_run, train
from training.run import checkpoint


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_interrupted_run_leaves_a_publishable_checkpoint(
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
    train(tmp_path, "--from-checkpoint", str(kept))
    assert (tmp_path / "models" / "mnist" / "1" / "model.onnx").exists()
