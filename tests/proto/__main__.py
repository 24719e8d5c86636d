"""python -m tests.proto X.Y.Z: keeps the protos of that release, which later ones must not break.

They are kept compiled, as one FileDescriptorSet, so that a comparison needs neither the history
of git nor a network. It is a step of a release, in docs/CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

BUF = Path(sys.executable).with_name("buf")  # of the package buf-bin
PROTO = ROOT / "proto"
RELEASED = ROOT / "tests" / "proto" / "released"


def breaks(new: Path, old: Path) -> list[str]:
    """What clients of the old protos lose with the new ones, one sentence each.

    Both are a FileDescriptorSet or a folder of protos. The rules are buf's category PACKAGE:
    what breaks source code, JSON or bytes. A definition may move to another file of its package.
    """
    config = '{"version": "v2", "breaking": {"use": ["PACKAGE"]}}'
    done = subprocess.run(
        [BUF, "breaking", new, "--against", old, "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    # 100 is buf's status for breaks, and for protos that do not compile.
    assert done.returncode in (0, 100), done.stderr
    return [re.sub(r"^\S+?:\d+:\d+:", "", line) for line in done.stdout.splitlines()]


def keep(version: str, folder: Path = RELEASED) -> None:
    """Replace the kept protos by the current ones."""
    for older in folder.glob("*.binpb"):
        older.unlink()
    build = [BUF, "build", PROTO, "--exclude-source-info", "-o", folder / f"{version}.binpb"]
    subprocess.run(build, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.proto", description=__doc__)
    parser.add_argument("version", metavar="X.Y.Z", help="the version of the release")
    keep(parser.parse_args().version)


if __name__ == "__main__":
    main()
