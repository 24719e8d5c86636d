"""python -m benchmarks.training: images/s of `mnist-train` beside plain PyTorch, and s to 99 %.

Both learn the net of `fast` from the same images, and both test on the same held-out images after
every epoch, which is part of an epoch's time. The test set is not used. Contenders take turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.settings import RESULTS, ROOT
from benchmarks.statistics import median
from training.measure import GOAL, seconds_to
from training.recipes.presets import RECIPES

CONTENDERS = {
    "ours": "mnist-train",
    "plain": "PyTorch's example, DataLoader in its process (its default on a CPU)",
    "plain-worker": "PyTorch's example, DataLoader with one worker process",
}
WANTED_RATIO = 2.0
_MNIST = 60_000  # training images in all


def epochs_of(contender: str, epochs: int, threads: int) -> list[dict[str, Any]]:
    """Train once in a process of its own; the figures of each epoch."""
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as folder:
        if contender == "ours":
            _run(
                "training.commands.train", "--epochs", epochs, "--threads", threads,
                "--models", f"{folder}/models", "--runs", f"{folder}/runs",
            )  # fmt: skip
            [metrics] = Path(folder).glob("runs/*/metrics.jsonl")
            lines = metrics.read_text(encoding="utf-8")
        else:
            workers = 1 if contender == "plain-worker" else 0
            lines = _run(
                "benchmarks.plain_training", "--epochs", epochs, "--threads", threads,
                "--workers", workers,
            )  # fmt: skip
    return [json.loads(line) for line in lines.splitlines()]


def _images() -> int:
    """Images that both learn from."""
    return _MNIST - RECIPES["fast"].validation_size


def _run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed: {done.stderr[-400:]}")
    return done.stdout


def markdown(told: dict[str, Any]) -> str:
    """The table, and whether ours is fast enough."""
    rates: dict[str, float] = {}
    lines = ["| | images/s | seconds to 99 % of the held-out images |", "| --- | ---: | ---: |"]
    for name, runs in told["runs"].items():
        rates[name] = median(
            # Ours says how many images an epoch trained on; the plain way takes all of them.
            epoch.get("images", told["images"]) / epoch["seconds"]
            for epochs in runs
            for epoch in epochs
        )
        reached = [seconds_to(GOAL, epochs) for epochs in runs]
        times = [seconds for seconds in reached if seconds is not None]
        shown = f"{median(times):.1f}" if len(times) == len(reached) else "not reached"
        lines.append(f"| {CONTENDERS[name]} | {rates[name]:,.0f} | {shown} |")
    host = told["machine"]
    parts = [
        f"Measured {told['date']} at revision {host['revision']} on {host['cores']} cores of "
        f"{host['cpu']} with {told['threads']} threads; load average before: "
        f"{host['load_average_before'][0]:g}.",
        "\n".join(lines),
    ]
    plain = [rate for name, rate in rates.items() if name != "ours"]
    if "ours" in rates and plain:
        ratio = rates["ours"] / max(plain)
        holds = "holds" if ratio >= WANTED_RATIO else "**does not hold**"
        parts.append(
            f"Ours is {ratio:.2f} times as fast as the faster plain way; the bar of "
            f"{WANTED_RATIO:g} times {holds}."
        )
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in turn, write DATE-MACHINE-training.json and its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="(default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    names = given.contenders.split(",")
    if unknown := set(names) - set(CONTENDERS):
        print(f"training: There is no contender '{min(unknown)}'.", file=sys.stderr)
        return 2
    described, now = machine.describe(), datetime.datetime.now(datetime.UTC)
    runs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            runs[name].append(epochs_of(name, given.epochs, given.threads))
            print(f"{name}: {[round(epoch['seconds'], 1) for epoch in runs[name][-1]]}", flush=True)
    told = {
        "date": now.isoformat(timespec="seconds"), "machine": described, "images": _images(),
        "threads": given.threads, "runs": runs,
    }  # fmt: skip
    path = machine.results_file(given.results, now, described, "training")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    text = markdown(told)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
