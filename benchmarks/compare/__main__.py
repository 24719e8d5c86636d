"""python -m benchmarks.compare: compare the speed of two checkouts of this server.

Both servers run on this machine and are loaded in turn, round after round, with the scenarios of
the main benchmark on one worker. --after is this checkout unless it is set; with --before set to
the same folder, the ratios show the noise of the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.check import WrongAnswer
from benchmarks.command_line import command_line
from benchmarks.compare.report import write_report
from benchmarks.compare.results import judge, read
from benchmarks.compare.rounds import comparable, find_tree, run
from benchmarks.load.result import GeneratorError, missing_tools
from benchmarks.paths import RESULTS, ROOT
from benchmarks.server_process import NotStarted
from benchmarks.serving.scenarios import matching


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a scenario is below its bound or cannot be measured, 2 for wrong options."""
    options = parser().parse_args(arguments)
    patterns = tuple(options.scenarios.split(",")) if options.scenarios else ()
    scenarios = comparable(patterns)
    try:
        if options.rounds < 1 or options.seconds < 1:
            raise ValueError("--rounds and --seconds must be at least 1.")
        for pattern in patterns:
            if not any(matching(scenario.name, [pattern]) for scenario in scenarios):
                names = ", ".join(scenario.name for scenario in comparable(("*",)))
                raise ValueError(f"No scenario matches '{pattern}'; there are {names}.")
        if missing := missing_tools():
            raise ValueError("; ".join(missing) + ".")
        before, after = find_tree(options.before), find_tree(options.after)
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    try:
        path = run(
            before,
            after,
            scenarios=scenarios,
            rounds=options.rounds,
            seconds=options.seconds,
            folder=options.results,
        )
    except (NotStarted, WrongAnswer, GeneratorError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(write_report(path))
    print(f"Written: {path}, with its report (.md).")
    return 0 if all(verdict.holds for verdict in judge(read(path))) else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.compare",
        "--before DIR [--after DIR] [--rounds N]",
        __doc__,
        "--before . --rounds 2 --scenarios '*single*'",
    )
    add("--before", type=Path, required=True, metavar="DIR", help="a checkout with its own .venv")
    add("--after", type=Path, default=ROOT, metavar="DIR", help="default: this checkout")
    add("--rounds", type=int, metavar="N", default=10, help="default: %(default)s")
    add(
        "--seconds",
        type=int,
        metavar="N",
        default=2,
        help="length of a sample (default: %(default)s)",
    )
    add(
        "--scenarios",
        metavar="A,B",
        help="names or shell patterns (default: all with one image per request)",
    )
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
