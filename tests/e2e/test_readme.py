"""Every command and snippet of the README, run as written, in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [block.strip() for language, block in BLOCKS if language == "sh"]
PYTHON = [block for language, block in BLOCKS if language == "python"]

# The environment is the one that runs this test: installing torch again would prove nothing new.
# Makefile and `.venv/bin/...` both find it under the name that the README uses.
pytestmark = pytest.mark.usefixtures("running")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would give a newcomer, with the installed environment under .venv."""
    tree = tmp_path_factory.mktemp("clone")
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
    return tree


class Foreground:
    """A command of the README that stays in the foreground until Ctrl-C."""

    def __init__(self, command: str, tree: Path) -> None:
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches all of it, as at a terminal
        )
        self.output = ""

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        while words not in self.output:
            line = self.process.stdout.readline()
            assert line, f"it ended by itself:\n{self.output}"
            self.output += line

    def interrupt(self) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.output += rest
        return self.process.returncode


@pytest.fixture(scope="module")
def running(tree: Path) -> Iterator[Foreground]:
    """`make run`, the first command, once it serves."""
    assert SHELL[0] == "make run"
    foreground = Foreground(SHELL[0], tree)
    try:
        foreground.read_until("stop with Ctrl-C")
        yield foreground
    finally:
        foreground.interrupt()


def test_make_run_trains_publishes_serves_and_predicts(running: Foreground, tree: Path) -> None:
    accuracy = re.search(r"Test accuracy (\d+\.\d+)%", running.output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 99.5
    assert (tree / "models" / "mnist" / "2" / "model.onnx").exists()
    for how in ("over HTTP", "over gRPC"):
        shown = running.output.split(f"docs/seven.png {how}")[1]
        assert shown.index("It is a 7") < shown.index("mnist version 2")


def test_every_other_shell_command_works_and_shows_the_seven(tree: Path) -> None:
    commands = [c for c in SHELL if not c.startswith("make ")]
    assert [c for c in commands if c.startswith("curl")]
    assert [c for c in commands if "mnist-predict" in c]
    for command in commands:
        for line in command.splitlines():
            done = subprocess.run(
                ["bash", "-c", line], cwd=tree, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert '"digit":7' in done.stdout or "It is a 7" in done.stdout


def test_the_python_snippet_is_a_grpc_client_of_ten_lines(tree: Path) -> None:
    (snippet,) = PYTHON
    assert len([line for line in snippet.splitlines() if line]) <= 10
    done = subprocess.run(
        [tree / ".venv" / "bin" / "python", "-c", snippet],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7 [")


def test_make_test_is_the_second_command_and_runs_pytest(tree: Path) -> None:
    """It is what runs this test; running it here again would never end."""
    assert SHELL[1] == "make test"
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=tree, capture_output=True, text=True, check=True
    )
    assert "pytest" in planned.stdout


def test_ctrl_c_ends_make_run_and_make_serve_serves_what_ships(
    running: Foreground, tree: Path
) -> None:
    running.interrupt()
    assert "Traceback" not in running.output
    assert "make serve" in SHELL
    serving = Foreground("make serve", tree)
    try:
        serving.read_until("Serving mnist")
    finally:
        serving.interrupt()
    assert "Traceback" not in serving.output


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
