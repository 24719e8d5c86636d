"""python -m benchmarks.engine: the cost of each option of ONNX Runtime, relative to its default.

Runs sessions in a loop, without a server, for both models and 1 to 512 rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import served_models
from benchmarks.command_line import command_line
from benchmarks.engine.measure import measure
from benchmarks.engine.report import write_report
from benchmarks.engine.results import Plan
from benchmarks.engine.sessions import CONFIGURATIONS
from benchmarks.paths import RESULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write DATE-MACHINE-engine.json with its tables."""
    options = parser().parse_args(arguments)
    models = options.models.split(",")
    if unknown := set(models) - set(served_models.NAMES):
        print(
            f"engine: Unknown model '{min(unknown)}'; use {' or '.join(served_models.NAMES)}.",
            file=sys.stderr,
        )
        return 2
    plan = Plan(rounds=options.rounds, seconds=options.seconds)
    print(write_report(measure(models, CONFIGURATIONS, plan, options.results)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.engine",
        "[--models A,B] [--rounds N] [--seconds S]",
        __doc__,
        "--models fast --rounds 1 --seconds 0.5",
    )
    add(
        "--models",
        default=",".join(served_models.NAMES),
        metavar="A,B",
        help="default: %(default)s",
    )
    add("--rounds", type=int, metavar="N", default=Plan().rounds, help="default: %(default)s")
    add("--seconds", type=float, metavar="S", default=Plan().seconds, help="seconds per sample")
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
