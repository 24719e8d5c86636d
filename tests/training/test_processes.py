"""mnist-train under torchrun: two processes learn the weights that one would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import free_ports
from tests.training.runs import command, epochs_of, evaluation_of, train
from training.data.dataset import split
from training.data.mnist import load_mnist
from training.errors import UsageError
from training.loop import train as learn
from training.processes import Processes
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.state import Run, begin

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(root: Path, *arguments: str) -> subprocess.Popen[str]:
    folders = ["--models", str(root / "models"), "--runs", str(root / "runs")]
    return subprocess.Popen(
        [*TWO, "-m", "training.commands.train", *folders, "--device", "cpu", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def two_processes(root: Path, *arguments: str) -> str:
    """Run what `torchrun` would start, without its own import of torch; what both print."""
    (port,) = free_ports(1)
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    jobs = [
        subprocess.Popen(
            command(root, "--device", "cpu", "--threads", "1", *arguments),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | address | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    log = "".join(job.communicate()[1] for job in jobs)
    assert [job.returncode for job in jobs] == [0, 0], log
    return log


@pytest.mark.parametrize("radius", ["0", "0.05"])  # with SAM each step has two passes
def test_two_processes_with_half_a_batch_each_learn_the_weights_of_one(
    tmp_path: Path, radius: str
) -> None:
    # Batches of 25: the two shards differ by an image.
    arguments = ["--recipe", "mlp", "--hidden", "32", "--dropout", "0", "--epochs", "3"]
    arguments += ["--train-limit", "300", "--batch-size", "25", "--l2", "0.001", "--patience", "9"]
    arguments += ["--sam", radius]
    # Each process records the losses of its own shard.
    arguments += ["--easy-below", "100", "--easy-share", "0.6"]
    one = train(tmp_path / "one", *arguments, "--no-publish")
    log = two_processes(tmp_path / "two", *arguments)
    (two,) = (tmp_path / "two" / "runs").iterdir()
    ours, theirs = (
        checkpoint.read(run / "checkpoint.safetensors").network.state_dict() for run in (one, two)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4), name
    for alone, shared in zip(epochs_of(one), epochs_of(two), strict=True):
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-4)
        assert shared["validation_loss"] == pytest.approx(alone["validation_loss"], abs=1e-4)
    assert abs(evaluation_of(one)["accuracy"] - evaluation_of(two)["accuracy"]) < 0.002
    # Only the first process writes, prints and publishes.
    assert log.count("epoch  1/3") == 1
    assert log.count("Published") == 1
    assert [path.name for path in (tmp_path / "two" / "models" / "mnist").iterdir()] == ["1"]


def test_signal_stops_both_processes_and_both_resume(tmp_path: Path) -> None:
    arguments = ["--recipe", "fast", "--channels", "4,8", "--epochs", "6", "--batch-size", "20"]
    arguments += ["--train-limit", "1500", "--no-publish", "--self-distillation", "0.5"]
    with torchrun(tmp_path, *arguments) as job:
        assert job.stderr is not None
        while "epoch  1/6" not in (line := job.stderr.readline()):
            assert line, "the run ended by itself"
        job.send_signal(signal.SIGTERM)
        log = job.stderr.read()
    assert job.returncode != 0
    (run,) = (tmp_path / "runs").iterdir()
    assert log.count("The run was interrupted") == 1
    reached = checkpoint.read_run(run / "state.safetensors").counters.epoch
    assert 1 <= reached < 6
    with torchrun(tmp_path, "--resume", str(run), "--no-publish") as job:
        assert job.stderr is not None
        log = job.stderr.read()
    assert job.returncode == 0, log
    assert [metrics["epoch"] for metrics in epochs_of(run)] == list(range(1, 7))

    # Bit for bit as an uninterrupted run, although each process has its own batch statistics.
    two_processes(tmp_path / "whole", *arguments)
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    ours, theirs = ((folder / "checkpoint.safetensors").read_bytes() for folder in (run, whole))
    assert ours == theirs


def test_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    recipe = Recipe(name="x", batch_size=1)
    run = Run(recipe=recipe, split=split(load_mnist(), recipe), seed=0, device=torch.device("cpu"))
    state = begin(run)
    with pytest.raises(UsageError, match="--batch-size"):
        learn(run, state, processes=Processes(0, 2))


def test_shards_make_up_the_batch() -> None:
    batch = torch.arange(7)
    shards = [Processes(rank, 3).shard(batch) for rank in range(3)]
    assert sorted(torch.cat(shards).tolist()) == batch.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) == 1
    assert torch.equal(Processes().shard(batch), batch)
