"""`make run` in a clone, as a newcomer starts it: the one full training of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

MAKE_RUN = "make run"


class MakeRun(NamedTuple):
    """A clone in which `make run` has trained, published, served and predicted."""

    tree: Path
    output: str


class Foreground:
    """A command of the README that runs until Ctrl-C."""

    def __init__(self, command: str, tree: Path) -> None:
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # With all cores, as for a newcomer. tests/conftest.py makes waiting threads not spin.
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
            start_new_session=True,  # Ctrl-C reaches the whole group, as at a terminal
        )
        self.output = ""

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        while words not in self.output:
            line = self.process.stdout.readline()
            assert line, f"{self.process.args} ended by itself:\n{self.output}"
            self.output += line

    def interrupt(self) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.output += rest
        return self.process.returncode


def clone(tree: Path) -> None:
    """Fill an empty folder with what git gives a newcomer, as if `make setup` had run in it.

    This test's own environment is under .venv, the folder that Makefile and README name.
    Installing torch once more would prove nothing new.
    """
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for file in filter(lambda name: (ROOT / name).exists(), files):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, tree / file)
    (tree / ".venv").symlink_to(sys.prefix)
    (tree / ".venv" / ".installed").touch()


def make_run(tree: Path) -> MakeRun:
    """Run `make run` in a clone, and stop its server."""
    clone(tree)
    foreground = Foreground(MAKE_RUN, tree)
    try:
        foreground.read_until("stop with Ctrl-C")
    finally:
        foreground.interrupt()
    return MakeRun(tree, foreground.output)
