"""What mnist-serve checks before it starts workers. No worker is started here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import supervisor
from service.cli import main
from service.settings import Settings
from tests.conftest import free_ports


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Settings, Path, Path]]]:
    """Filled with what would be served: the settings, and the folders of state and metrics."""
    starts: list[tuple[Settings, Path, Path]] = []

    def serve(server: supervisor.Supervisor, state_folder: Path) -> int:
        metrics = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        assert state_folder.is_dir()
        assert metrics.is_dir()
        starts.append((server.settings, state_folder, metrics))
        return 0

    monkeypatch.setattr(supervisor.Supervisor, "run", serve)
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)
    # Restored at the end: `main` sets it for the workers.
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    for variable in [name for name in os.environ if name.startswith("MNIST_")]:
        monkeypatch.delenv(variable)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield starts
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """The flags of a server that could start."""
    http, grpc = free_ports(2)
    return ["--models", str(tmp_path), "--http-port", str(http), "--grpc-port", str(grpc)]


def test_workers_get_the_settings_and_folders_that_last_as_long_as_the_server(
    served: list[tuple[Settings, Path, Path]], arguments: list[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--workers", "3"]) == 0
    ((settings, state_folder, metrics),) = served
    assert (settings.workers, settings.models) == (3, tmp_path)
    assert not state_folder.exists()
    assert not metrics.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--http-port", "0"], "http_port must be at least 1"),
        (["--workers", "many"], "--workers"),
        (["--config", "/none.toml"], "Cannot read the settings file /none.toml"),
        (["--models", "/no/models"], "The model repository /no/models does not exist"),
        (["--models", "/etc/hostname"], "/etc/hostname is neither a folder nor FILE.onnx"),
        (["--host", "a" * 64 + ".invalid"], "Cannot listen on aaa"),
        (["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1 port"),
    ],
)
def test_settings_that_cannot_work_are_named_and_end_with_status_2(
    served: list[tuple[Settings, Path, Path]],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    assert main([*arguments, *flags]) == 2
    assert served == []
    error = capsys.readouterr().err
    assert error.startswith("mnist-serve: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_temporary_folder_too_long_for_sockets_is_named(
    served: list[tuple[Settings, Path, Path]],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert main(arguments) == 2
    assert served == []
    assert "set TMPDIR to a shorter folder" in capsys.readouterr().err
    assert list(long.iterdir()) == []


def test_conflicting_packages_are_refused(
    served: list[tuple[Settings, Path, Path]],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(supervisor, "conflicting_packages", lambda: "Both are installed.")
    assert main(arguments) == 2
    assert capsys.readouterr().err == "mnist-serve: Both are installed.\n"
    assert served == []


def test_streams_that_the_shell_has_closed_are_opened() -> None:
    # Else the log would go to the first socket or file that is opened.
    script = (
        "from service import cli; import os, sys; cli._open_closed_streams(); "
        "print('lost', file=sys.stderr); "
        "print(os.path.samestat(os.fstat(2), os.stat('/dev/null')))"
    )
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (closed.returncode, closed.stdout) == (0, "True\n")
