"""--help of every command: named groups, a usage of one line, and examples that run."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mnist_client.command import main as predict
from PIL import Image

from benchmarks import traces
from benchmarks.compare import __main__ as compare
from benchmarks.engine import __main__ as engine
from benchmarks.growth import __main__ as growth
from benchmarks.overload import __main__ as overload
from benchmarks.pictures import __main__ as pictures
from benchmarks.serving import command as benchmark
from benchmarks.training import __main__ as training
from service import probe, settings
from service.access import command as keys
from tests.conftest import ROOT, SHIPPED_MODELS, Server
from training.commands import evaluate, search, train

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "mnist-serve": settings.parser,
    "mnist-probe": probe.parser,
    "mnist-keys": keys.parser,
    "mnist-predict": predict.parser,
    "mnist-train": train.parser,
    "mnist-search": search.parser,
    "mnist-evaluate": evaluate.parser,
    "python -m benchmarks": benchmark.parser,
    "python -m benchmarks.compare": compare.parser,
    "python -m benchmarks.engine": engine.parser,
    "python -m benchmarks.growth": growth.parser,
    "python -m benchmarks.overload": overload.parser,
    "python -m benchmarks.pictures": pictures.parser,
    "python -m benchmarks.traces": traces.parser,
    "python -m benchmarks.training": training.parser,
}
every_command = pytest.mark.parametrize("command", PARSERS)


def examples(command: str) -> list[list[str]]:
    """The arguments of each example in the help of a command."""
    epilog = PARSERS[command]().epilog or ""
    _, _, lines = epilog.partition("example")
    found = [shlex.split(line, comments=True) for line in lines.splitlines()[1:]]
    prefix = command.split()
    assert found
    assert all(words[: len(prefix)] == prefix for words in found)
    return [words[len(prefix) :] for words in found]


@every_command
def test_every_flag_is_in_a_group_with_a_name(command: str) -> None:
    parser = PARSERS[command]()
    grouped = [action for group in parser._action_groups[2:] for action in group._group_actions]
    assert [action.dest for action in parser._actions if action not in grouped] == []
    titles = [group.title for group in parser._action_groups[2:]]
    assert len(titles) > 1
    assert all(titles)


@every_command
def test_usage_is_one_line(command: str) -> None:
    usage = PARSERS[command]().format_usage()
    assert usage.startswith(f"usage: {command} ")
    assert usage.count("\n") == 1
    assert len(usage) <= 81


@every_command
def test_help_fits_into_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in PARSERS[command]().format_help().splitlines() if len(line) > 80] == []


SUITES = sorted(path.parent.name for path in (ROOT / "tests").glob("*/__main__.py"))


@pytest.mark.parametrize("suite", [*SUITES, "compose.swarm"])
def test_a_suite_explains_itself_and_refuses_what_it_does_not_know(
    suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of running its tests, which take minutes."""
    module = importlib.import_module(f"tests.{suite}" + ".__main__" * (suite in SUITES))
    for argument, status in (("--help", 0), ("--no-such-option", 2)):
        monkeypatch.setattr("sys.argv", [f"python -m tests.{suite}", argument])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == status
    printed = capsys.readouterr()
    assert printed.out.startswith(f"usage: python -m tests.{suite} ")
    assert "error: " in printed.err


def test_examples_of_the_server_and_its_probe_run(
    start_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHIPPED_MODELS, tmp_path / "models")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    newest = max((SHIPPED_MODELS / "mnist").iterdir(), key=lambda folder: int(folder.name))
    for name in ("model.onnx", "model.json"):
        shutil.copy(newest / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    (of_probe,) = examples("mnist-probe")
    for example in examples("mnist-serve"):
        if "--check" in example:
            command = [sys.executable, "-m", "service.cli", *example]
            # With one core there is a warning; another test may hold the default ports.
            assert subprocess.run(command, check=False, timeout=120).returncode in (0, 1, 2)
            continue
        server = start_server(Path("models"), arguments=example)
        monkeypatch.setenv("MNIST_HTTP_PORT", str(server.http_port))
        monkeypatch.setenv("MNIST_GRPC_PORT", str(server.grpc_port))
        assert probe.main(of_probe) == 0
        monkeypatch.delenv("MNIST_HTTP_PORT")
        monkeypatch.delenv("MNIST_GRPC_PORT")
        assert server.stop() == 0


def test_examples_of_the_client_run(server: Server, tmp_path: Path) -> None:
    pictures = ROOT / "service/http/playground/static"
    for folder, name in (("docs", "seven.png"), ("scans", "mnist-3.png"), ("more/a", "b.png")):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(pictures / "mnist-7.png", tmp_path / folder / name)
    Image.open(pictures / "mnist-number.png").convert("RGB").save(tmp_path / "page.jpg")
    _, _, lines = (predict.parser().epilog or "").partition("examples:\n")
    assert lines
    for line in lines.splitlines():
        address = server.grpc if "--grpc" in line else server.http
        client = f"{sys.executable} -m mnist_client.command.main --address {address}"
        command = line.replace("mnist-predict", client)
        done = subprocess.run(
            ["bash", "-c", command], check=True, capture_output=True, timeout=120, cwd=tmp_path
        )
        assert done.stdout, line
    assert (tmp_path / "boxes.png").exists()


def test_examples_of_keys_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in examples("mnist-keys"):
        assert keys.main(example) == 0
    names = [line.split()[0] for line in Path("keys").read_text().splitlines()[1:]]
    assert names == ["ci", "gateway"]


def test_examples_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED_MODELS, tmp_path / "models")
    little = ["--train-limit=400", "--validation-size=100", "--epochs=1", "--threads=1"]
    for example in examples("mnist-train"):
        assert train.main([*example, *little]) == 0
    for example in examples("mnist-search"):
        assert search.main([*example, *little]) == 0
    for example in examples("mnist-evaluate"):
        assert evaluate.main(example) == 0
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("command", [each for each in PARSERS if "benchmarks" in each])
def test_examples_of_benchmarks_are_accepted(command: str) -> None:
    """tests/benchmarks runs them with less to do; one of these takes minutes."""
    for example in examples(command):
        PARSERS[command]().parse_args(example)


def test_example_of_the_main_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = examples("python -m benchmarks")
    assert benchmark.main(example) == 0
    assert "contenders: " in capsys.readouterr().out
