"""Images per second of `mnist-train` beside plain PyTorch, and the time to 99 %.

Both train the net of `fast` on the same images and evaluate it on the same validation images after
every epoch; the evaluation counts as part of the epoch. The test set is not used. Contenders take
turns.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import host
from benchmarks.host import Host
from benchmarks.json_file import write_json
from benchmarks.markdown import table
from benchmarks.medians import median
from benchmarks.paths import ROOT
from benchmarks.training.epochs import GOAL, Epoch, parse, seconds_to
from training.recipes.presets import RECIPES

CONTENDERS = {
    "ours": "mnist-train",
    "plain": "PyTorch's example, DataLoader in its process (its default on a CPU)",
    "plain-worker": "PyTorch's example, DataLoader with one worker process",
}
TARGET_RATIO = 2.0
DEFAULT_THREADS = os.cpu_count() or 1
_MNIST = 60_000  # all training images


@dataclass(slots=True)
class Throughput:
    """One run: the epochs of every round by contender."""

    date: str
    machine: Host
    images: int
    threads: int
    runs: dict[str, list[list[Epoch]]] = field(default_factory=dict)


def measure(
    contenders: Sequence[str], *, epochs: int, rounds: int, threads: int, folder: Path
) -> Path:
    """Train in turn; returns the results file, which has its table beside it."""
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    throughput = Throughput(
        date=now.isoformat(timespec="seconds"),
        machine=machine,
        images=_MNIST - RECIPES["fast"].validation_size,
        threads=threads,
        runs={name: [] for name in contenders},
    )
    path = host.results_file(folder, now, machine, "training")
    for _ in range(rounds):
        for name in contenders:
            run = train(name, epochs, threads)
            throughput.runs[name].append(run)
            print(f"{name}: {[round(epoch.seconds, 1) for epoch in run]}", flush=True)
    write_json(path, throughput)
    path.with_suffix(".md").write_text(markdown(throughput), encoding="utf-8")
    return path


def train(contender: str, epochs: int, threads: int) -> list[Epoch]:
    """Train once in a new process."""
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as folder:
        options: list[object] = ["--epochs", epochs, "--threads", threads]
        if contender == "ours":
            options += ["--models", f"{folder}/models", "--runs", f"{folder}/runs"]
            _run("training.commands.train", *options)
            [metrics] = Path(folder).glob("runs/*/metrics.jsonl")
            return parse(metrics.read_text(encoding="utf-8"))
        options += ["--workers", 1 if contender == "plain-worker" else 0]
        return parse(_run("benchmarks.training.pytorch_example", *options))


def _run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 (this tree, in this Python)
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed: {done.stderr[-400:]}")
    return done.stdout


def markdown(throughput: Throughput) -> str:
    """The table, and whether ours reaches its target."""
    rates: dict[str, float] = {}
    rows = []
    for name, runs in throughput.runs.items():
        rates[name] = median(
            # `mnist-train` says how many images an epoch trained on; plain PyTorch takes them all.
            (epoch.images or throughput.images) / epoch.seconds
            for epochs in runs
            for epoch in epochs
        )
        times = [seconds_to(GOAL, epochs) for epochs in runs]
        reached = [seconds for seconds in times if seconds is not None]
        shown = f"{median(reached):.1f}" if len(reached) == len(times) else "not reached"
        rows.append([CONTENDERS[name], f"{rates[name]:,.0f}", shown])
    machine = throughput.machine
    parts = [
        f"Measured {throughput.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu} with {throughput.threads} threads; load average before: "
        f"{machine.load_average_before[0]:g}.",
        table(["", "images/s", "seconds to 99 % of the validation images"], rows),
    ]
    plain = [rate for name, rate in rates.items() if name != "ours"]
    if "ours" in rates and plain:
        ratio = rates["ours"] / max(plain)
        verdict = "holds" if ratio >= TARGET_RATIO else "**does not hold**"
        parts.append(
            f"Ours is {ratio:.2f} times as fast as the faster of the others; the bar of "
            f"{TARGET_RATIO:g} times {verdict}."
        )
    return "\n\n".join(parts) + "\n"
