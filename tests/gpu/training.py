"""mnist-train on CUDA: reproducible bit for bit, after a kill, in bfloat16, under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu.check import Check, Place

_SHORT = ["--recipe", "fast", "--train-limit", "20000", "--epochs", "2", "--no-publish"]
_LIMITED = 100.0


def _command(place: Place, name: str, *arguments: str) -> list[str]:
    from tests.training.runs import command

    return command(place.folder / name, "--device", place.device, *arguments)


def _train(place: Place, name: str, *arguments: str) -> Path:
    """Run `mnist-train` and return the run's folder. Raises AssertionError with its last lines."""
    return _finish(place, name, _command(place, name, *arguments))


def _finish(place: Place, name: str, command: list[str]) -> Path:
    from tests.training.runs import only_run

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (place.folder / f"{name}.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, f"{done.returncode}: {_end(done.stderr)}"
    return only_run(place.folder / name)


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-8:])


def _epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def _json(run: Path, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((run / name).read_text())
    return fields


def _same(first: Path, second: Path) -> None:
    from training.run import checkpoint

    for name in ("checkpoint.safetensors", "evaluation.json"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            weights, others = (
                checkpoint.read(run / "checkpoint.safetensors").network.state_dict()
                for run in (first, second)
            )
            gaps = {key: float((weights[key] - others[key]).abs().max()) for key in weights}
            raise AssertionError(f"{name} differs; weights by {max(gaps.values())}: {gaps}")


def _summary(run: Path) -> str:
    epochs = _epochs(run)
    seconds = sum(epoch["seconds"] for epoch in epochs)
    images = sum(epoch["images"] for epoch in epochs)
    best = max(epoch["images"] / epoch["seconds"] for epoch in epochs)
    return (
        f"{_json(run, 'evaluation.json')['accuracy']:.2%} of the test images; {len(epochs)} epochs "
        f"in {seconds:.1f} s, {images / seconds:,.0f} images/s, {best:,.0f} in the fastest epoch"
    )


def repeats(place: Place) -> str:
    """Two runs with one seed produce the same bytes."""
    first, second = (_train(place, name, *_SHORT, "--seed", "7") for name in ("a", "b"))
    _same(first, second)
    return f"the same bytes; {_summary(second)}"


def repeats_as_record(place: Place) -> str:
    """Two runs in bfloat16 with sharpness-aware steps produce the same bytes."""
    more = ["--bf16", "--sam", "0.05", "--average-maps"]
    more += ["--self-distillation", "0.5", "--plain-end", "0.5"]
    first, second = (_train(place, name, *_SHORT, *more) for name in ("a", "b"))
    _same(first, second)
    return f"the same bytes; {_summary(second)}"


def resumes(place: Place) -> str:
    """A run that is killed in an epoch and resumed produces the bytes of an uninterrupted run."""
    from tests.training.runs import STATEFUL, kill_in_epoch
    from training.run import checkpoint

    arguments = [*STATEFUL, "--device", place.device]
    whole = _train(place, "whole", *STATEFUL)
    killed, _ = kill_in_epoch(place.folder / "killed", 3, arguments, signal.SIGKILL)
    reached = checkpoint.read_run(killed / "state.safetensors").counters.epoch
    assert 1 <= reached < 8, f"killed after {reached} epochs of 8"
    from tests.training.runs import command

    resume = command(place.folder / "killed", "--resume", str(killed), "--no-publish")
    _same(whole, _finish(place, "killed", resume))
    return f"killed after epoch {reached} of 8, the same bytes"


def learns_in_bfloat16(place: Place) -> str:
    """`--bf16` reaches 98 % in four epochs."""
    run = _train(place, "run", "--recipe", "fast", "--bf16", "--epochs", "4", "--no-publish")
    return _check_accuracy(place, run)


def learns_as_record(place: Place) -> str:
    """`record`, in bfloat16 with sharpness-aware steps, reaches 98 % in three epochs."""
    run = _train(place, "run", "--recipe", "record", "--epochs", "3", "--no-publish")
    return _check_accuracy(place, run)


def _check_accuracy(place: Place, run: Path) -> str:
    precision, accuracy = (
        _json(run, "config.json")["precision"],
        _json(run, "evaluation.json")["accuracy"],
    )
    assert precision == "bfloat16" or not place.on_cuda, precision
    assert accuracy > 0.98, f"{accuracy:.2%}"
    return f"{precision}; {_summary(run)}"


def every_option(place: Place) -> str:
    """The other options of recipes: activations, penalties, max-norm, momentum, patience."""
    common = ["--train-limit", "5000", "--epochs", "2", "--no-publish"]
    recipes = {
        "mlp": ["--recipe", "mlp", "--l1", "1e-6", "--l2", "1e-5", "--max-norm", "3"],
        "tiny": ["--recipe", "tiny", "--activation", "tanh", "--patience", "1"],
    }
    results = [f"{name}: {_summary(_train(place, name, *options, *common))}"
               for name, options in recipes.items()]  # fmt: skip
    return "; ".join(results)


def under_torchrun(place: Place) -> str:
    """`torchrun` with one process produces the bytes of the command alone."""
    alone = _train(place, "alone", *_SHORT)
    one = _finish(place, "one", _torchrun(place, "one", *_SHORT))
    _same(alone, one)
    return "the same bytes"


def resumes_after_torchrun(place: Place) -> str:
    """A run that `torchrun` started resumes without it."""
    from tests.training.runs import command, only_run

    start = _torchrun(place, "one", *_SHORT, "--epochs", "9")
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        while "epoch  1/9" not in (line := job.stderr.readline()):
            assert line, "the run ended before its first epoch"
        job.send_signal(signal.SIGTERM)
        output = job.stderr.read()
    run = only_run(place.folder / "one")
    reached = len(_epochs(run))
    assert reached < 9, f"the run did not stop: {_end(output)}"
    device = _json(run, "config.json")["device"]
    resume = command(place.folder / "one", "--resume", str(run), "--no-publish")
    assert len(_epochs(_finish(place, "one", resume))) == 9
    return f"started on {device}, stopped after {reached} epochs, resumed to 9"


def _torchrun(place: Place, name: str, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    return [*start, *_command(place, name, *arguments)[1:]]


def with_nccl(place: Place) -> str:
    """NCCL works: one process does the work of the first of two, which one GPU cannot hold."""
    import torch
    from torch import distributed

    from tests.conftest import free_ports
    from training.data.dataset import split
    from training.data.mnist import load_mnist
    from training.evaluation.metrics import logits_of, loss_and_accuracy
    from training.hardware import choose_device
    from training.loop import train
    from training.processes import Processes
    from training.recipes.presets import RECIPES
    from training.recipes.recipe import changed
    from training.state import Run, begin

    device = choose_device(place.device)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    backend = "nccl" if place.on_cuda else "gloo"
    if place.on_cuda:
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, rank=0, world_size=1)
    knobs = {"train_limit": 6000, "epochs": 3, "patience": 9, "sharpness": 0.05, "bf16": True}
    recipe = changed(RECIPES["fast"], knobs)
    data = load_mnist()
    run = Run(recipe=recipe, split=split(data, recipe), seed=0, device=device)
    state = begin(run)
    try:
        train(run, state, processes=Processes(0, 2))
    finally:
        distributed.destroy_process_group()
    logits = logits_of(state.result().network, data.test_images, device)
    accuracy = loss_and_accuracy(logits, data.test_labels)[1]
    assert accuracy > 0.8, f"{accuracy:.2%}"
    return f"{backend}: {accuracy:.2%} after 3 epochs of 3,000 images"


def whole_fast(place: Place) -> str:
    """Accuracy and time of the default recipe, started as a user would start it."""
    more = [] if place.on_cuda else ["--epochs", "1", "--train-limit", "6000"]
    start = time.monotonic()
    run = _train(place, "whole", *more)
    took = time.monotonic() - start
    accuracy = _json(run, "evaluation.json")["accuracy"]
    assert accuracy > 0.994 or not place.on_cuda, f"{accuracy:.2%}"
    assert (place.folder / "whole/models/mnist/1/model.onnx").exists()
    return f"{_summary(run)}; {took:.1f} s from the command to the published model"


def whole_record(place: Place) -> str:
    """Time of a fifth of the epochs of `record`."""
    more = ["--epochs", "12"] if place.on_cuda else ["--epochs", "1", "--train-limit", "1000"]
    return _summary(_train(place, "whole", "--recipe", "record", "--no-publish", *more))


CHECKS = (
    Check("train-repeats", repeats, _LIMITED),
    Check("train-repeats-record", repeats_as_record, _LIMITED),
    Check("train-resumes", resumes, _LIMITED),
    Check("train-bf16", learns_in_bfloat16, _LIMITED),
    Check("train-record", learns_as_record, _LIMITED),
    Check("train-options", every_option, _LIMITED),
    Check("train-torchrun", under_torchrun, _LIMITED),
    Check("train-torchrun-resumes", resumes_after_torchrun, _LIMITED),
    Check("train-nccl", with_nccl, _LIMITED),
    Check("train-fast-whole", whole_fast, _LIMITED, alone=True),
    Check("train-record-part", whole_record, _LIMITED, alone=True, on_request=True),
)
