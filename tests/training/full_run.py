"""One full run of the default recipe, as a user would start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class FastRun(NamedTuple):
    """Where the run left its folder and its published version."""

    run_dir: Path
    model_dir: Path
    output: str


def train_fast(root: Path) -> FastRun:
    """Run `mnist-train` with nothing but its folders given."""
    folders = ["--models", root / "models", "--runs", root / "runs"]
    done = subprocess.run(
        [sys.executable, "-m", "training.commands.train", *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (root / "runs").iterdir()
    return FastRun(run_dir, root / "models" / "mnist" / "1", done.stderr)
