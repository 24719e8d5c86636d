"""python -m benchmarks: measure this server beside its rivals, and write a report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.contenders import CONTENDERS
from benchmarks.load.result import missing_tools
from benchmarks.serving import report
from benchmarks.serving.plan import QUICK, Plan
from benchmarks.serving.run import run
from benchmarks.serving.scenarios import SCENARIOS, matching


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 after a run, 2 for a wrong option or a missing tool."""
    options = parser().parse_args(arguments)
    if options.list:
        print("contenders:", *(contender.name for contender in CONTENDERS))
        print("scenarios: ", *(scenario.name for scenario in SCENARIOS))
        return 0
    try:
        plan = _plan(options)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if missing := missing_tools():
        print("benchmarks: " + "; ".join(missing) + ".", file=sys.stderr)
        return 2
    path = run(plan)
    print(report.build(path))
    print(f"Written: {path}, with its report (.md) and its plot (.png).")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """The plan of the options. Raises ValueError for a pattern that matches nothing."""
    changes = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Plan)
        if getattr(options, field.name, None) is not None
    }
    plan = dataclasses.replace(QUICK if options.quick else Plan(), **changes)
    for kind, patterns, names in (
        ("contender", plan.contenders, [contender.name for contender in CONTENDERS]),
        ("scenario", plan.scenarios, [scenario.name for scenario in SCENARIOS]),
    ):
        for pattern in patterns:
            if not any(matching(name, [pattern]) for name in names):
                raise ValueError(f"There is no {kind} '{pattern}'; --list shows the names.")
    return plan


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks",
        "[--quick] [--contenders A,B] [--scenarios A,B]",
        __doc__,
        "--list",
    )
    for option in ("contenders", "scenarios"):
        add(
            f"--{option}",
            type=lambda text: tuple(text.split(",")),
            metavar="A,B",
            help="names or shell patterns (default: all)",
        )
    add("--rounds", type=int, metavar="N", help="samples per contender and scenario (default: 5)")
    add("--seconds", type=int, metavar="N", help="length of a sample in seconds (default: 5)")
    add("--quick", action="store_true", help="a few scenarios in one short round")
    add(
        "--no-install",
        dest="install",
        action="store_false",
        default=None,
        help="leave out rivals that are not installed",
    )
    add_output("--results", type=Path, metavar="FOLDER", help="folder of the results file")
    add_output("--list", action="store_true", help="print the names of contenders and scenarios")
    return options
