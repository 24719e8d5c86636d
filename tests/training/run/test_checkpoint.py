"""No work is lost: runs that are killed, that run out of space, that diverge."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.training.commands.test_train import command, only_run
from tests.training.small_run import epochs_of, train
from training.commands.train import main
from training.errors import CheckpointError
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.state import TrainingState, begin

# Everything that has a state: momentum of AdamW, a moving average, batch norm, dropout,
# augmentation, the best epoch so far.
WHOLE = [
    *("--recipe", "fast", "--channels", "4,8", "--hidden", "16", "--dropout", "0.2"),
    *("--patience", "9", "--epochs", "8", "--train-limit", "3000", "--batch-size", "50"),
    *("--validation-size", "500", "--threads", "1", "--no-publish"),
]


def kill_in_epoch(
    root: Path, number: int, arguments: list[str], kind: signal.Signals
) -> tuple[Path, str]:
    """Start a run and send it a signal in the midst of an epoch; its folder and last words."""
    with subprocess.Popen(command(root, *arguments), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        while f"epoch  {number - 1}/" not in (line := job.stderr.readline()):
            assert line, "the run ended by itself"
        job.send_signal(kind)
        words = job.stderr.read()
    return only_run(root), words


def test_a_killed_run_goes_on_to_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *WHOLE)
    run, _ = kill_in_epoch(tmp_path / "killed", 3, WHOLE, signal.SIGKILL)
    assert 2 <= checkpoint.read_run(run / "state.safetensors").numbers["epoch"] < 8
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
    assert [figures["epoch"] for figures in epochs_of(run)] == list(range(1, 9))
    assert not list(run.glob(".*"))


def test_a_terminated_run_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    arguments = ["--recipe", "book-30-30", "--epochs", "40", "--train-limit", "3000"]
    run, words = kill_in_epoch(tmp_path, 2, [*arguments, "--threads", "1"], signal.SIGTERM)
    assert f"mnist-train --resume {run}" in words
    saved = checkpoint.read_run(run / "state.safetensors")
    assert 1 <= len(saved.epochs) == saved.numbers["epoch"] < 40
    train(tmp_path, "--resume", str(run), "--no-publish")
    assert [figures["epoch"] for figures in epochs_of(run)] == list(range(1, 41))


def test_a_run_killed_before_its_first_epoch_can_be_resumed(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "2", "--train-limit", "100", "--no-publish"]
    first, second = train(tmp_path / "a", *few), train(tmp_path / "b", *few)
    state = begin(
        checkpoint.read_run(first / "state.safetensors").recipe, 10, 100, 0, torch.device("cpu")
    )
    old = checkpoint.read_run(second / "state.safetensors")
    blank = old._replace(epochs=[], numbers=state.numbers(), tensors=state.tensors())
    checkpoint.save_run(second / "state.safetensors", blank)
    train(tmp_path / "b", "--resume", str(second), "--no-publish")
    name = "checkpoint.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_goes_into_tensors_and_back(momentum: float) -> None:
    recipe = Recipe(name="x", channels=(4,), momentum=momentum, ema_decay=0.9)

    def step(state: TrainingState) -> None:
        pixels = torch.rand(8, 1, 28, 28, generator=state.random)
        state.optimizer.zero_grad()
        state.network(pixels).square().sum().backward()
        state.optimizer.step()

    first, second = (begin(recipe, 10, 1, seed, torch.device("cpu")) for seed in (1, 2))
    step(first)
    second.restore(first.numbers(), first.tensors())
    for state in (first, second):
        step(state)
    ours, theirs = first.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert ("optimizer.0.momentum_buffer" in ours) == bool(momentum)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_a_run_began_with_cannot_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "1", "--train-limit", "100", "--no-publish"]
    run = train(tmp_path, *few)
    for flags in (["--epochs", "3"], ["--recipe", "book"], ["--seed", "3"]):
        assert main(["--resume", str(run), *flags]) == 2
        assert flags[0] in capsys.readouterr().err
    assert main(["--resume", str(tmp_path)]) == 1
    assert "not the folder of a run" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert main(["--resume", str(tmp_path / "old")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (run / "state.safetensors").write_bytes(b"cut")
    assert main(["--resume", str(run)]) == 1
    assert "state.safetensors is not a checkpoint" in capsys.readouterr().err


def limit_file_size() -> None:
    """Have the kernel refuse files over 100 kB, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_without_room_there_is_one_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
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


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["--runs", str(tmp_path / "file" / "runs"), "--train-limit", "100"]) == 1
    message = capsys.readouterr().err
    assert "No run folder can be made" in message
    assert "--runs" in message


def test_a_loss_that_is_no_number_keeps_the_last_good_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One step an epoch. The first multiplies the weights by about 1e20, the second finds no number.
    arguments = ["--recipe", "book", "--batch-size", "full", "--lr", "1e25", "--epochs", "5"]
    run = train(tmp_path, *arguments, "--train-limit", "100", status=1)
    message = capsys.readouterr().err
    assert "--lr" in message
    saved = checkpoint.read_run(run / "state.safetensors")
    assert all(bool(t.isfinite().all()) for t in saved.tensors.values() if t.is_floating_point())
    assert saved.numbers["epoch"] < 5
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_run(tmp_path / "none")
