"""python -m training.measure: fill the table of recipes in docs/training.md with measured figures.

It runs `mnist-train` for every row and seed, one after the other, and appends each run to a JSON
file, so that it can be stopped and goes on where it was. Run it on a quiet machine: what it says of
seconds is true of that machine only. What is written is what was measured; nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError, UsageError
from training.files import write_atomically
from training.hardware import cpu_model
from training.models import build_network, count_parameters
from training.publish.release import git_revision, versions
from training.recipes.presets import RECIPES

# Rows of the table: a name, and the arguments of mnist-train. Rates for the variants of `book` are
# what is usual for the method; nothing here is tuned on the test set.
ROWS: Mapping[str, tuple[str, ...]] = {
    "`book`": ("--recipe", "book"),
    "`book`, one cycle to 0.1": ("--recipe", "book", "--schedule", "one-cycle", "--lr", "0.1"),
    "`book`, AdamW 0.001": ("--recipe", "book", "--optimizer", "adamw"),
    "`book-30-30`": ("--recipe", "book-30-30"),
    "`mlp`": ("--recipe", "mlp"),
    "`tiny`": ("--recipe", "tiny"),
    "`fast`": ("--recipe", "fast"),
    "`record`": ("--recipe", "record"),
}
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_DOCS = Path(__file__).parents[1] / "docs"
GOAL = 0.99  # of held-out images
# Student's t for a two-sided 95 % interval, by number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table. Returns 0, 1 on failure, 2 on misuse."""
    options, extra = _parser().parse_known_args(arguments)
    try:
        results = _read(options.results)
        for name in _rows(options.rows):
            for seed in options.seeds:
                if any(_is(run, name, seed, extra) for run in results):
                    continue
                print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
                results.append(_measure(name, seed, options.threads, extra))
                write_atomically(options.results, json.dumps(results, indent=1).encode() + b"\n")
        if options.docs:
            write_table(options.docs, results)
    except TrainingError as error:
        print(f"measure: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_table(docs: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between its two marks in a Markdown file."""
    text = docs.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{docs} has no place for the table: {BEGIN} and {END} are missing.")
    write_atomically(docs, f"{before}{BEGIN}\n{table(results)}{END}{after}".encode())


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: a row says `not measured yet` until there are runs of it."""
    head = (
        "recipe",
        "parameters",
        "test accuracy, mean ± sd",
        "95 % interval of the mean",
        "seeds",
        "calibration error",
        "seconds",
        "seconds to 99 %",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, arguments in ROWS.items():
        runs = [run for run in results if run["row"] == name and not run["extra"]]
        network = build_network(RECIPES[arguments[1]])
        cells = [name, f"{count_parameters(network):,}", *_cells(runs)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return ["not measured yet", "", "", "", "", ""]
    accuracies = [run["accuracy"] for run in runs]
    mean, interval, deviation = statistics.fmean(accuracies), "", ""
    if len(runs) > 1:
        spread = statistics.stdev(accuracies)
        half = _T95.get(len(runs), 1.96) * spread / len(runs) ** 0.5
        deviation = f" ± {100 * spread:.3f}"
        interval = f"{100 * (mean - half):.2f} to {100 * min(1, mean + half):.2f} %"
    reached = [run["seconds_to_99"] for run in runs]
    return [
        f"{100 * mean:.3f}{deviation} %",
        interval,
        str(len(runs)),
        f"{100 * statistics.fmean(run['calibration_error'] for run in runs):.2f} %",
        f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
        f"{statistics.fmean(reached):.0f}" if None not in reached else "never by all",
    ]


def _measure(name: str, seed: int, threads: int, extra: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.commands.train", *ROWS[name], "--no-publish"]
        command += ["--runs", folder, "--seed", str(seed), "--threads", str(threads), *extra]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TrainingError(f"{' '.join(command)} failed:\n{done.stderr}")
        (run,) = Path(folder).iterdir()
        evaluation = json.loads((run / "evaluation.json").read_bytes())
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "row": name,
        "seed": seed,
        "extra": list(extra),
        "accuracy": evaluation["accuracy"],
        "loss": evaluation["loss"],
        "calibration_error": evaluation["calibration_error"],
        "calibration_error_before": evaluation["before_calibration"]["calibration_error"],
        "epochs": len(epochs),
        "seconds": sum(figures["seconds"] for figures in epochs),
        "seconds_to_99": seconds_to(GOAL, epochs),
        "threads": threads,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores of {cpu_model()}",
        "git_revision": git_revision(),
        "versions": versions(),
    }


def seconds_to(goal: float, epochs: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds to the end of the first epoch with so many right, as a share, or None without one.

    Of the held-out images; where there are none, of the test images.
    """
    passed: float = 0.0
    for figures in epochs:
        passed += float(figures["seconds"])
        accuracy = figures.get("validation_accuracy", figures.get("test_accuracy", 0.0))
        if accuracy >= goal:
            return passed
    return None


def _is(run: Mapping[str, Any], name: str, seed: int, extra: Sequence[str]) -> bool:
    return bool((run["row"], run["seed"], run["extra"]) == (name, seed, list(extra)))


def _rows(asked: Sequence[str] | None) -> list[str]:
    if not asked:
        return list(ROWS)
    if wrong := [name for name in asked if f"`{name}`" not in ROWS]:
        raise UsageError(f"There is no row {wrong[0]}; there are {', '.join(ROWS)}.")
    return [name for name in ROWS if any(name.startswith(f"`{each}`") for each in asked)]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.exists() else []
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}).") from error
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.measure",
        description="Measure recipes and fill the table in the docs. Further arguments go to "
        "mnist-train; runs with any are kept apart, and out of the table.",
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="RECIPE", help="recipes to measure (default: all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--results", type=Path, default=_DOCS / "training-measured.json", help="the JSON file")
    add("--docs", type=Path, default=_DOCS / "training.md", help="the file with the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
