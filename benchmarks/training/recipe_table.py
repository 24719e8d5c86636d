"""python -m benchmarks.training.recipe_table: measure recipes for docs/training.md.

Runs `mnist-train` for every row and seed, one after another, and appends each run to a JSON file.
If it is stopped, the next call continues with the missing runs. Its seconds are those of the
machine, so run it on a quiet one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.paths import RESULTS, ROOT
from benchmarks.training.epochs import GOAL, parse, seconds_to
from training.data.dataset import DIGITS, output_count
from training.errors import TrainingError, UsageError
from training.files import write_atomically
from training.hardware import cpu_model
from training.models import build_network, count_parameters
from training.publish.release import git_revision, versions
from training.recipes.presets import RECIPES

# Rows of the table: a name, and the options of mnist-train. The learning rates of the variants of
# `book` are usual for their methods; nothing here is tuned on the test set.
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
MEASURED = RESULTS / "recipes.json"
DOCS = ROOT / "docs" / "training.md"
# Student's t for a two-sided 95 % interval, by number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of `mnist-train`. `extra` are options beyond those of its row."""

    row: str
    seed: int
    extra: list[str]
    accuracy: float  # of the test images, as are loss and calibration errors
    loss: float
    calibration_error: float
    calibration_error_before: float
    epochs: int
    seconds: float
    seconds_to_99: float | None
    threads: int
    machine: str
    git_revision: str | None
    versions: dict[str, str]
    date: str = ""  # missing in the oldest runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the missing runs, then write the table. Returns 0, 1 on failure, 2 on misuse."""
    options, extra = _parser().parse_known_args(arguments)
    try:
        runs = read(options.results)
        for row in _rows(options.rows):
            for seed in options.seeds:
                if any((run.row, run.seed, run.extra) == (row, seed, extra) for run in runs):
                    continue
                print(f"{row}, seed {seed} ...", file=sys.stderr, flush=True)
                runs.append(_measure(row, seed, options.threads, extra))
                fields = [dataclasses.asdict(run) for run in runs]
                write_atomically(options.results, json.dumps(fields, indent=1).encode() + b"\n")
        if options.docs:
            write_table(options.docs, runs)
    except TrainingError as error:
        print(f"recipe_table: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_table(docs: Path, runs: Sequence[MeasuredRun]) -> None:
    """Put the table between its two marks in a Markdown file."""
    text = docs.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{docs} has no place for the table: {BEGIN} and {END} are missing.")
    write_atomically(docs, f"{before}{BEGIN}\n{table(runs)}{END}{after}".encode())


def table(runs: Sequence[MeasuredRun]) -> str:
    """The table; a row without runs says `not measured yet`."""
    header = (
        "recipe",
        "parameters",
        "test accuracy, mean ± sd",
        "95 % interval of the mean",
        "seeds",
        "calibration error",
        "seconds",
        "seconds to 99 %",
    )
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row, arguments in ROWS.items():
        recipe = RECIPES[arguments[1]]
        network = build_network(recipe, output_count(recipe, DIGITS))
        cells = _cells([run for run in runs if run.row == row and not run.extra])
        lines.append(f"| {row} | {count_parameters(network):,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(runs: Sequence[MeasuredRun]) -> list[str]:
    if not runs:
        return ["not measured yet", "", "", "", "", ""]
    accuracies = [run.accuracy for run in runs]
    mean, interval, deviation = statistics.fmean(accuracies), "", ""
    if len(runs) > 1:
        spread = statistics.stdev(accuracies)
        half = _T95.get(len(runs), 1.96) * spread / len(runs) ** 0.5
        deviation = f" ± {100 * spread:.3f}"
        interval = f"{100 * (mean - half):.2f} to {100 * min(1, mean + half):.2f} %"
    reached = [run.seconds_to_99 for run in runs]
    times = [seconds for seconds in reached if seconds is not None]
    unreached = "not by all seeds" if times else "not reached"
    return [
        f"{100 * mean:.3f}{deviation} %",
        interval,
        str(len(runs)),
        f"{100 * statistics.fmean(run.calibration_error for run in runs):.2f} %",
        f"{statistics.fmean(run.seconds for run in runs):.0f}",
        f"{statistics.fmean(times):.0f}" if len(times) == len(runs) else unreached,
    ]


def _measure(row: str, seed: int, threads: int, extra: Sequence[str]) -> MeasuredRun:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.commands.train", *ROWS[row], "--no-publish"]
        command += ["--runs", folder, "--seed", str(seed), "--threads", str(threads), *extra]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (this tree, in this Python)
        if done.returncode:
            raise TrainingError(f"{' '.join(command)} failed:\n{done.stderr}")
        (run,) = Path(folder).iterdir()
        evaluation = json.loads((run / "evaluation.json").read_bytes())
        epochs = parse((run / "metrics.jsonl").read_text(encoding="utf-8"))
    return MeasuredRun(
        row=row,
        seed=seed,
        extra=list(extra),
        accuracy=evaluation["accuracy"],
        loss=evaluation["loss"],
        calibration_error=evaluation["calibration_error"],
        calibration_error_before=evaluation["before_calibration"]["calibration_error"],
        epochs=len(epochs),
        seconds=sum(epoch.seconds for epoch in epochs),
        seconds_to_99=seconds_to(GOAL, epochs),
        threads=threads,
        machine=f"{os.cpu_count()} cores of {cpu_model()}",
        git_revision=git_revision(),
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _rows(recipes: Sequence[str] | None) -> list[str]:
    if not recipes:
        return list(ROWS)
    if unknown := [recipe for recipe in recipes if f"`{recipe}`" not in ROWS]:
        raise UsageError(f"There is no row {unknown[0]}; there are {', '.join(ROWS)}.")
    return [row for row in ROWS if any(row.startswith(f"`{recipe}`") for recipe in recipes)]


def read(path: Path) -> list[MeasuredRun]:
    """The runs so far; none without the file. Raises TrainingError for an unreadable file."""
    try:
        runs = json.loads(path.read_bytes()) if path.exists() else []
        return [MeasuredRun(**run) for run in runs]
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}).") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.recipe_table",
        description="Measure the recipes and fill the table in docs/training.md. Further options "
        "go to mnist-train; runs with any are kept separately and stay out of the table.",
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="RECIPE", help="recipes to measure (default: all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    add("--results", type=Path, default=MEASURED, help="JSON file of the runs")
    add("--docs", type=Path, default=DOCS, help="Markdown file with the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
