"""No work is lost: runs that are killed, run out of disk space, diverge."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.training.runs import STATEFUL, begin_on_mnist, command, epochs_of, kill_in_epoch, train
from training.errors import CheckpointError
from training.run import checkpoint


def test_killed_run_resumes_to_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *STATEFUL)
    run, _ = kill_in_epoch(tmp_path / "killed", 3, STATEFUL, signal.SIGKILL)
    assert 2 <= checkpoint.read_run(run / "state.safetensors").counters.epoch < 8
    (run / ".checkpoint.safetensors.cut").write_bytes(b"half")
    assert train(tmp_path / "killed", "--resume", str(run), "--no-publish") == run
    for name in ("checkpoint.safetensors", "evaluation.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    theirs, ours = (
        {k: v for k, v in tensors.items() if v.numel()}
        for tensors in (
            checkpoint.read_run(path / "state.safetensors").tensors for path in (whole, run)
        )
    )
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert [metrics["epoch"] for metrics in epochs_of(run)] == list(range(1, 9))
    assert not list(run.glob(".*"))


def test_terminated_run_names_the_command_that_resumes_it(tmp_path: Path) -> None:
    arguments = ["--recipe", "book-30-30", "--epochs", "40", "--train-limit", "1500"]
    run, words = kill_in_epoch(tmp_path, 2, [*arguments, "--threads", "1"], signal.SIGTERM)
    assert f"mnist-train --resume {run}" in words
    saved = checkpoint.read_run(run / "state.safetensors")
    assert 1 <= len(saved.epochs) == saved.counters.epoch < 40
    train(tmp_path, "--resume", str(run), "--no-publish")
    assert [metrics["epoch"] for metrics in epochs_of(run)] == list(range(1, 41))


def test_run_killed_before_its_first_epoch_can_be_resumed(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "2", "--train-limit", "100", "--no-publish"]
    first, second = train(tmp_path / "a", *few), train(tmp_path / "b", *few)
    saved = checkpoint.read_run(second / "state.safetensors")
    state = begin_on_mnist(saved.recipe)
    blank = saved._replace(epochs=[], counters=state.counters(), tensors=state.tensors())
    checkpoint.save_run(second / "state.safetensors", blank)
    train(tmp_path / "b", "--resume", str(second), "--no-publish")
    name = "checkpoint.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def limit_file_size() -> None:
    """Let the kernel refuse files over 100 kB, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_full_disk_is_one_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    arguments = ["--recipe", "book", "--epochs", "300", "--train-limit", "2000"]
    run, _ = kill_in_epoch(tmp_path, 2, arguments, signal.SIGKILL)
    before = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    done = subprocess.run(
        command(tmp_path, "--resume", str(run)),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "mnist-train:" in line]
    assert len(errors) == 1
    assert "cannot be written: File too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in run.glob("*.safetensors")} == before
    assert not list(run.glob(".*"))


def test_diverging_run_keeps_the_last_finite_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One step per epoch. The first multiplies the weights by about 1e20, the second overflows.
    arguments = ["--recipe", "book", "--batch-size", "full", "--lr", "1e25", "--epochs", "5"]
    run = train(tmp_path, *arguments, "--train-limit", "100", status=1)
    message = capsys.readouterr().err
    assert "--lr" in message
    saved = checkpoint.read_run(run / "state.safetensors")
    assert all(bool(t.isfinite().all()) for t in saved.tensors.values() if t.is_floating_point())
    assert saved.counters.epoch < 5
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_run(tmp_path / "none")
