"""python -m benchmarks.pictures: how many pictures are read right, and how many others refused.

Draws MNIST's test digits as pictures of every kind, and letters, signs, noise, blanks, clothes and
several digits, by the half of the generators that nothing was tuned on. It looks at them with the
service's own functions, without a server, and prints every figure with its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.paths import RESULTS, ROOT
from benchmarks.pictures.results import QUICK, Plan

_SHIPPED = ROOT / "models" / "mnist"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write DATE-MACHINE-pictures.json with its tables. Or draw the sheet of the docs."""
    options = parser().parse_args(arguments)
    if options.sheet:
        from benchmarks.pictures.sheet import write_sheet

        write_sheet(options.sheet)
        return 0
    path: Path = options.report
    if not path:
        versions = [folder for folder in _SHIPPED.iterdir() if folder.name.isdigit()]
        models = options.models or [max(versions, key=lambda folder: int(folder.name))]
        for folder in models:
            if not (folder / "model.onnx").is_file():
                print(f"pictures: {folder} has no model.onnx.", file=sys.stderr)
                return 2
        from benchmarks.pictures.measure import measure

        plan = replace(QUICK if options.quick else Plan(), seed=options.seed)
        path = measure(models, plan, options.results, options.fashion)
    from benchmarks.pictures.report import write_docs, write_report

    print(write_report(path))
    if options.docs:
        write_docs(path)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, add_output = command_line(
        "benchmarks.pictures",
        "[--models DIR] [--quick] [--report FILE]",
        __doc__,
        "--quick",
    )
    add(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="a version with its model.onnx; repeat it for the mean over several "
        "(default: the newest that ships)",
    )
    add("--quick", action="store_true", help="few of each, in about a minute")
    add(
        "--seed",
        type=int,
        metavar="N",
        default=Plan().seed,
        help="of the pictures; default: %(default)s",
    )
    add("--fashion", type=Path, metavar="DIR", help="Fashion-MNIST (default: Debian's package)")
    add_output(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results file"
    )
    add_output("--sheet", type=Path, metavar="FILE", help="draw an example of each kind and stop")
    add_output("--docs", action="store_true", help="write the tables into docs/pictures.md as well")
    add_output(
        "--report", type=Path, metavar="FILE", help="report on a results file; measure nothing"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
