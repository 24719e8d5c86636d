"""python -m benchmarks.growth: how cost grows.

Five curves: throughput and latency over connections (1 to 512), over images per request (1 to
4,096), over the bytes of a picture, and over loaded models (1 to 64; with memory and time to
ready), and memory over requests served (2 million). The first two include the bare RSGI floor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.growth.curves import CURVES, measure
from benchmarks.growth.report import write_report
from benchmarks.growth.results import Plan
from benchmarks.load.result import missing_tools
from benchmarks.paths import RESULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the curves; write DATE-MACHINE-growth.json with its report and plot."""
    options = parser().parse_args(arguments)
    names = options.curves.split(",")
    if unknown := set(names) - set(CURVES):
        print(f"growth: There is no curve '{min(unknown)}'.", file=sys.stderr)
        return 2
    if missing := missing_tools():
        print("growth: " + "; ".join(missing) + ".", file=sys.stderr)
        return 2
    plan = Plan(seconds=options.seconds, requests=options.requests)
    print(write_report(measure(names, plan, options.results)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.growth",
        "[--curves A,B] [--seconds N] [--requests N]",
        __doc__,
        "--curves models --seconds 1",
    )
    add("--curves", default=",".join(CURVES), metavar="A,B", help="default: %(default)s")
    add("--seconds", type=int, metavar="N", default=Plan().seconds, help="seconds per point")
    add("--requests", type=int, metavar="N", default=Plan().requests, help="of the last curve")
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
