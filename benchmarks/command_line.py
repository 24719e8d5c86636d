"""The common form of every benchmark's --help."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any


def command_line(
    module: str, usage: str, doc: str | None, example: str
) -> tuple[argparse.ArgumentParser, Any, Any]:
    """A parser, and what adds flags to its groups: what is measured, and the output.

    `doc` is the module's docstring, `example` the flags of the example.
    """
    paragraphs = (doc or "").partition(": ")[2].split("\n\n")  # behind `python -m MODULE: `
    description = "\n\n".join(textwrap.fill(" ".join(each.split()), 79) for each in paragraphs)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        usage=f"%(prog)s {usage}",
        description=description[:1].upper() + description[1:],
        epilog=f"example:\n  python -m {module} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    measured = parser.add_argument_group("what is measured")
    output = parser.add_argument_group("output")
    output.add_argument("-h", "--help", action="help", help="show this text and exit")
    return parser, measured.add_argument, output.add_argument
