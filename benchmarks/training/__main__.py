"""python -m benchmarks.training: speed of `mnist-train` beside plain PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.paths import RESULTS
from benchmarks.training.throughput import CONTENDERS, DEFAULT_THREADS, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in turn; write DATE-MACHINE-training.json and its table."""
    options = parser().parse_args(arguments)
    contenders = options.contenders.split(",")
    if unknown := set(contenders) - set(CONTENDERS):
        print(f"training: There is no contender '{min(unknown)}'.", file=sys.stderr)
        return 2
    path = measure(
        contenders,
        epochs=options.epochs,
        rounds=options.rounds,
        threads=options.threads,
        folder=options.results,
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.training",
        "[--contenders A,B] [--epochs N]",
        __doc__,
        "--epochs 1 --rounds 1",
    )
    add("--epochs", type=int, metavar="N", default=10, help="default: %(default)s")
    add("--rounds", type=int, metavar="N", default=3, help="default: %(default)s")
    add("--threads", type=int, metavar="N", default=DEFAULT_THREADS, help="default: one per core")
    add("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="default: %(default)s")
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
