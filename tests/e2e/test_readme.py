"""Runs every command and snippet of the README as written, in a copy of the tree.

Figures and links are checked as well: each figure against the file that it was measured into.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.settings import Settings
from tests.conftest import ROOT
from tests.e2e.make_run import MAKE_RUN, Foreground, MakeRun

README = (ROOT / "README.md").read_text()
PROSE = " ".join(README.split())
# The section on models of one's own has commands that build on each other.
BEFORE, OWN_MODEL, AFTER = re.split(r"^## Serve your own .*\n|^## Not for you", README, flags=re.M)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SHELL = [block.strip() for block in blocks(BEFORE + AFTER, "sh")]


@pytest.fixture(scope="module")
def tree(make_run: MakeRun) -> Path:
    return make_run.tree


@pytest.fixture(scope="module")
def running(tree: Path) -> Iterator[Foreground]:
    """A server of what `make run` has published, on the ports that it had."""
    assert "make serve" in SHELL
    serving = Foreground("make serve", tree)
    try:
        serving.read_until("Serving mnist")
        wait_until_ready("http://127.0.0.1:8000/v2/models/mnist/ready")
        yield serving
    finally:
        serving.interrupt()


def test_make_run_trains_publishes_serves_and_predicts(make_run: MakeRun, tree: Path) -> None:
    assert SHELL[0] == MAKE_RUN
    accuracy = re.search(r"Test accuracy (\d+\.\d+)%", make_run.output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 99.3
    assert (tree / "models" / "mnist" / "3" / "model.onnx").exists()
    for transport in ("over HTTP", "over gRPC"):
        shown = make_run.output.split(f"docs/seven.png {transport}")[1]
        assert shown.index("It is a 7") < shown.index("mnist version 3")


class Shell:
    """A newcomer's second shell: it finds what the README has activated, and nothing of ours."""

    def __init__(self, tree: Path) -> None:
        environ = {n: v for n, v in os.environ.items() if n not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        folders = environ["PATH"].split(os.pathsep)
        environ["PATH"] = os.pathsep.join(
            each for each in folders if not (Path(each) / "mnist-serve").exists()
        )
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=tree,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command: str) -> tuple[int, str]:
        """The exit status of a command, and what it printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '\\nstatus %d\\n' $?\n")
        self._bash.stdin.flush()
        output = ""
        for line in self._bash.stdout:
            if line.startswith("status "):
                return int(line.split()[1]), output
            output += line
        pytest.fail(f"{command} ended the shell:\n{output}")

    def run(self, command: str) -> str:
        status, output = self.type(command)
        assert status == 0, f"{command}\n{output}"
        return output

    def run_python(self, snippet: str) -> str:
        return self.run(f"python3 - <<'END'\n{snippet}END")

    def close(self) -> None:
        self._bash.communicate(timeout=60)


@pytest.fixture(scope="module")
def shell(tree: Path, running: Foreground) -> Iterator[Shell]:
    """The second shell, once the README's commands up to its first Python have been typed."""
    assert running.process.poll() is None
    shell = Shell(tree)
    assert shell.type("command -v mnist-predict")[0] != 0
    lines = [line for c in SHELL if not c.startswith("make ") for line in c.splitlines()]
    activate, *calls = lines
    assert shell.run(activate).strip() == ""
    assert [line.split()[0] for line in calls] == ["curl", "mnist-predict"]
    for line in calls:
        answer = shell.run(line)
        assert '"digit":7' in answer or "It is a 7" in answer
    yield shell
    shell.close()


def lines_of(block: str) -> int:
    return len([line for line in block.splitlines() if line])


def test_the_second_shell_shows_the_seven_and_has_every_command_of_the_page(shell: Shell) -> None:
    commands = set(re.findall(r"`(mnist-[a-z]+(?: --check)?)`", PROSE))
    assert "mnist-serve --check" in commands
    for command in commands:
        shell.run(f"command -v {command.split()[0]}")
    status, report = shell.type("mnist-serve --check")
    assert status in {0, 1}  # 1: a warning, such as ports that the first shell has
    assert "0 errors" in report


def test_the_python_snippet_is_a_grpc_client_of_ten_lines(shell: Shell) -> None:
    (snippet,) = blocks(BEFORE, "python")
    assert lines_of(snippet) <= 10
    assert shell.run_python(snippet).startswith("7 [")


def test_a_model_of_ones_own_is_served_after_ten_lines(shell: Shell, tree: Path) -> None:
    (snippet,), (commands,) = blocks(OWN_MODEL, "python"), blocks(OWN_MODEL, "sh")
    assert lines_of(snippet) + lines_of(commands) <= 10
    shell.run_python(snippet)
    publish, ask = commands.split("\n", 1)
    assert "every two seconds" in OWN_MODEL
    assert Settings().poll_interval == 2
    shell.run(publish)
    wait_until_ready("http://127.0.0.1:8000/v2/models/iris/ready")
    answer = shell.run(ask.replace("curl ", "curl -s ", 1))  # its progress is not JSON
    (scores,) = json.loads(answer)["outputs"]
    session = onnxruntime.InferenceSession(tree / "models" / "iris" / "1" / "model.onnx")
    (expected,) = session.run(["scores"], {"x": np.array([[5, 3, 1, 0]], np.float32)})
    assert scores["shape"] == [1, 3]
    np.testing.assert_allclose(scores["data"], np.asarray(expected)[0], rtol=1e-5)


def wait_until_ready(url: str, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except urllib.error.URLError:  # also: no server yet
            time.sleep(0.05)
    pytest.fail(f"{url} does not become ready")


def test_make_test_is_the_second_command_and_runs_pytest(tree: Path) -> None:
    """It is what runs this test; to run it here again would never end."""
    assert SHELL[1] == "make test"
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=tree, capture_output=True, text=True, check=True
    )
    assert "pytest" in planned.stdout


def test_ctrl_c_ends_make_run_and_make_serve(make_run: MakeRun, running: Foreground) -> None:
    running.interrupt()
    for output in (make_run.output, running.output):
        assert "Traceback" not in output


def test_it_fits_on_a_few_screens_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 130
    targets = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r'src="([^":]+)"', README)
    assert "LICENSE" in targets
    for target in targets:
        # GitHub serves the state of a workflow two levels above the file that it shows.
        path = target.replace("../../actions/", ".github/").removesuffix("/badge.svg")
        assert (ROOT / path).exists(), target


def test_figures_of_other_servers_are_those_of_the_results_file() -> None:
    (linked,) = re.findall(r"\[full results\]\((\S+)\.md\)", README)
    results: dict[str, Any] = json.loads((ROOT / f"{linked}.json").read_text())
    assert f"{results['date'][:10]} ([method]" in PROSE
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| ")
    ]
    titles = {record["title"].split(" (")[0]: record["name"] for record in results["contenders"]}
    names = [titles[title] for title in header[1:]]
    peaks = {record["name"]: record["peak_rss_mb"] for record in results["contenders"]}
    scenarios = {
        "HTTP, 1 connection": "raw-1",
        "HTTP, 16 connections": "raw-16",
        "HTTP, 64 connections": "raw-64",
        "gRPC, 32 streams": "grpc-32",
    }
    assert [label for label, *_ in rows] == [*scenarios, "peak memory, MB"]
    for label, *cells in rows:
        if scenario := scenarios.get(label):
            values = [median_rate(results, scenario, name) for name in names]
            best = max(filter(None, values))
        else:
            values = [peaks[name] for name in names]
            best = min(values)
        assert [cell.strip("*") for cell in cells] == [f"{v:,.0f}" if v else "" for v in values]
        assert [cell for cell in cells if "*" in cell] == [f"**{best:,.0f}**"], label
        if scenario == "raw-16":
            first, second = sorted(values, reverse=True)[:2]
            assert f"At 16 connections it answers {first / second:.1f} times as many" in PROSE
    # A median says little where rounds are far apart, so the README names whom this concerns.
    apart = {
        title: max(max(r) / min(r) for s in scenarios.values() if (r := rates(results, s, name)))
        for title, name in zip(header[1:], names, strict=True)
    }
    assert re.findall(r"(\w+)'s rounds are up to ([\d.]+) times apart", PROSE) == [
        (title, f"{ratio:.1f}") for title, ratio in apart.items() if ratio > 1.5
    ]


def rates(results: dict[str, Any], scenario: str, contender: str) -> list[float]:
    return [
        sample["requests_per_s"]
        for sample in results["samples"]
        if (sample["scenario"], sample["contender"]) == (scenario, contender)
    ]


def median_rate(results: dict[str, Any], scenario: str, contender: str) -> float:
    """Requests/s, or 0 where the contender was not measured."""
    return statistics.median(rates(results, scenario, contender) or [0.0])


def test_figures_of_training_are_those_of_the_manual() -> None:
    manual = (ROOT / "docs" / "training.md").read_text()
    (row,) = re.findall(r"^\| `fast` \| [\d,]+ \|(.*)$", manual, re.MULTILINE)
    accuracy, _, seeds, _, seconds, _ = [cell.strip() for cell in row.strip("|").split("|")]
    claim = f"Training takes {seconds} s on two cores and reaches {float(accuracy[:6]):.2f} %"
    assert claim in PROSE
    assert seeds == "3"
    (growth,) = re.findall(r"changed memory by 0\.2 MB\]\((\S+)\)", README)
    assert "the resident set grew by -0.2 MB" in (ROOT / growth).read_text()
