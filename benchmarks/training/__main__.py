"""python -m benchmarks.training: speed of `mnist-train` beside plain PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import RESULTS
from benchmarks.training.throughput import CONTENDERS, DEFAULT_THREADS, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in turn; write DATE-MACHINE-training.json and its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    add = parser.add_argument
    add("--epochs", type=int, default=10, help="default: %(default)s")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--threads", type=int, default=DEFAULT_THREADS, help="default: one per core")
    add("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="default: %(default)s")
    add("--results", type=Path, default=RESULTS, help="folder of the results file")
    options = parser.parse_args(arguments)
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


if __name__ == "__main__":
    sys.exit(main())
