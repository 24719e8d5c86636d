"""python -m benchmarks.overload: five times the load that one worker can answer, and abuse.

For the shipped model and one of 50 ms per run, over HTTP and gRPC, with and without deadlines of a
second: the peak (closed loop), the latency at 80 % of it, an open loop at 5 times the peak while
another process probes health and metrics, and how soon a light load is answered as usual. Then
health and memory under each abusive load, and how late deadlines are answered while a model runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.check import WrongAnswer
from benchmarks.command_line import command_line
from benchmarks.host import describe, load_average, results_file
from benchmarks.json_file import write_json
from benchmarks.load.attacks import ATTACKS
from benchmarks.load.result import GeneratorError
from benchmarks.overload import abuse
from benchmarks.overload.measure import measure
from benchmarks.overload.models import NAMES
from benchmarks.overload.report import write_report
from benchmarks.overload.results import Plan, Results, judge, read
from benchmarks.paths import RESULTS
from benchmarks.server_process import NotStarted

_WIRES = ("http", "grpc")
_QUICK = Plan(peak_s=1.5, normal_s=3, overload_s=4, recovery_s=2.5, abuse_s=3, rest_s=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a bar fails or is not judged, 2 for wrong options."""
    options = parser().parse_args(arguments)
    models, wires = _names(options.models), _names(options.wires)
    if unknown := (set(models) - set(NAMES)) | (set(wires) - set(_WIRES)):
        print(f"overload: There is no '{min(unknown)}'.", file=sys.stderr)
        return 2
    attacks = [name for name in ATTACKS if any(fnmatch(name, p) for p in _names(options.attacks))]
    if not attacks:
        print(f"overload: No attack matches; there are {', '.join(ATTACKS)}.", file=sys.stderr)
        return 2
    is_everything = options.load == options.abuse
    plan = _QUICK if options.quick else Plan()
    if options.seconds:
        plan = dataclasses.replace(plan, overload_s=options.seconds)
    now = datetime.now().astimezone()
    host = describe()
    results = Results(f"{now:%Y-%m-%d}", host, plan, pinned=not options.unpinned)
    path = results_file(options.results, now, host, "overload")
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        scratch = Path(folder)
        try:
            if options.load or is_everything:
                for scenario in measure(models, wires, plan, scratch, is_pinned=results.pinned):
                    print(f"{scenario.name}: measured.", file=sys.stderr, flush=True)
                    results.scenarios.append(scenario)
                    write_json(path, results)
            if options.abuse or is_everything:
                for each in abuse.measure(attacks, plan, scratch, is_pinned=results.pinned):
                    print(f"{each.name}: measured.", file=sys.stderr, flush=True)
                    results.abuses.append(each)
                    write_json(path, results)
                if options.attacks == "*":
                    results.timings.extend(abuse.deadlines(scratch, is_pinned=results.pinned))
            results.finished = True
        except (NotStarted, WrongAnswer, GeneratorError) as error:
            results.problems.append(str(error))
    host.load_average_after.extend(load_average())
    write_json(path, results)
    print(write_report(path))
    print(f"Written: {path}, with its report (.md).")
    verdicts = judge(read(path))
    is_whole = results.finished and not results.problems
    return 0 if is_whole and all(verdict.holds for verdict in verdicts) else 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.overload",
        "[--quick] [--load | --abuse] [--models A,B]",
        __doc__,
        "--quick --load --models fast --wires http",
    )
    add("--models", default=",".join(NAMES), metavar="A,B", help="default: %(default)s")
    add("--wires", default=",".join(_WIRES), metavar="A,B", help="default: %(default)s")
    add("--load", action="store_true", help="only the overload; default: everything")
    add("--abuse", action="store_true", help="only the abuse and the deadlines")
    add("--attacks", default="*", metavar="A,B", help="names or shell patterns (default: all)")
    add("--quick", action="store_true", help="shorter phases")
    add("--seconds", type=float, metavar="S", help="length of the overload")
    add("--unpinned", action="store_true", help="let server and load share all cores")
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
