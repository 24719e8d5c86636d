"""python -m tests.proto X.Y.Z: keeps the protos of that release, which later ones must not break.

They are kept compiled, as one FileDescriptorSet, so that a comparison needs neither the history
of git nor a network. It is a step of a release, in docs/CONTRIBUTING.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

RELEASED = ROOT / "tests" / "proto" / "released"


def compile_current(to: Path) -> None:
    """Compile proto/ into one FileDescriptorSet, under the virtual folder of `make proto`."""
    include = re.search(r"^PROTOC_PATH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert include, "The Makefile has no PROTOC_PATH."
    options = [include[1], "--include_imports", f"--descriptor_set_out={to}"]
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    names = [str(source.relative_to(ROOT)) for source in sources]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *options, *names], cwd=ROOT, check=True
    )


def breaks(new: Path, old: Path) -> list[str]:
    """What clients of the old protos lose with the new ones, one sentence each.

    Both are a FileDescriptorSet or a folder of protos. The rules are buf's category PACKAGE:
    what breaks source code, JSON or bytes. A definition may move to another file of its package.
    """
    config = '{"version": "v2", "breaking": {"use": ["PACKAGE"]}}'
    buf = Path(sys.executable).with_name("buf")  # from the package buf-bin
    done = subprocess.run(
        [buf, "breaking", new, "--against", old, "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    # 100 is buf's status for breaks, and for protos that do not compile.
    assert done.returncode in (0, 100), done.stderr
    return [re.sub(r"^\S+?:\d+:\d+:", "", line) for line in done.stdout.splitlines()]


def main(version: str) -> None:
    """Replace the kept protos by the current ones."""
    for older in RELEASED.glob("*.binpb"):
        older.unlink()
    compile_current(RELEASED / f"{version}.binpb")


if __name__ == "__main__":
    main(sys.argv[1])
