"""python -m benchmarks: measure, and write the results file and the report made from it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import CONTENDERS
from benchmarks.load.result import missing_tools
from benchmarks.run import run
from benchmarks.scenarios import SCENARIOS, matching
from benchmarks.settings import QUICK, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 after a run, 2 where one cannot be."""
    given = _parser().parse_args(arguments)
    if given.list:
        print("contenders:", *(each.name for each in CONTENDERS))
        print("scenarios: ", *(each.name for each in SCENARIOS))
        return 0
    try:
        settings = _settings(given)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if missing := missing_tools():
        print("benchmarks: " + "; ".join(missing) + ".", file=sys.stderr)
        return 2
    path = run(settings)
    print(report.build(path))
    print(f"Written: {path} with its .md and .png beside it.")
    return 0


def _settings(given: argparse.Namespace) -> Settings:
    base = QUICK if given.quick else Settings()
    told = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(given, field.name, None) is not None
    }
    settings = dataclasses.replace(base, **told)
    for kind, patterns, known in (
        ("contender", settings.contenders, [each.name for each in CONTENDERS]),
        ("scenario", settings.scenarios, [each.name for each in SCENARIOS]),
    ):
        for pattern in patterns:
            if not any(matching(name, [pattern]) for name in known):
                raise ValueError(f"There is no {kind} '{pattern}'; --list names them.")
    return settings


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    for what in ("contenders", "scenarios"):
        made.add_argument(
            f"--{what}",
            type=lambda text: tuple(text.split(",")),
            metavar="A,B",
            help="names or shell patterns (default: all)",
        )
    made.add_argument("--rounds", type=int, help="samples of each (default: 5)")
    made.add_argument("--seconds", type=int, help="length of a sample (default: 5)")
    made.add_argument("--quick", action="store_true", help="few scenarios, one short round")
    made.add_argument("--results", type=Path, help="folder of the results file")
    made.add_argument(
        "--no-install",
        dest="install",
        action="store_false",
        default=None,
        help="leave out rivals that are not installed yet",
    )
    made.add_argument("--list", action="store_true", help="name contenders and scenarios")
    return made


if __name__ == "__main__":
    sys.exit(main())
