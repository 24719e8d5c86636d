"""Starts with unusual settings, environments and model folders: none hangs, none is a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHIPPED_MODELS, Server


def failed_start(*flags: str, **environ: str) -> str:
    """What a server that does not start says; its status is 2."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *flags],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("MNIST_")}
        | environ,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mnist-serve: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (["--work", "2"], {}, "the nearest flag is --workers."),
        ([], {"MNIST_WORKER": "2"}, "the nearest is MNIST_WORKERS."),
        (["--workers", "x"], {}, "workers from --workers is 'x', but must be a whole number."),
        (["--body-timeout", "inf"], {}, "body_timeout must be at least 0.1 and at most 3600"),
        (["--intra-op-threads", "100000"], {}, "intra_op_threads must be at least 1 and at most"),
        (["--max-connections", "1" + "0" * 30], {}, "max_connections must be at least 1"),
        (["--compress-min-bytes=-5"], {}, "compress_min_bytes must be at least 0"),
        (["--host", "no.such.name.invalid"], {}, "Cannot listen on no.such.name.invalid"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(
    flags: list[str], environ: dict[str, str], words: str
) -> None:
    assert words in failed_start(*flags, **environ)


def test_localhost_is_a_host(start_server: Callable[..., Server]) -> None:
    server = start_server(host="localhost")
    assert server.get("/v2/health/ready")[0] == 200
    # It counts as this machine: changes are allowed.
    assert server.post("/v2/logging", b'{"log_info": true}', "application/json")[0] == 200
    assert server.stop() == 0


def test_service_links_of_kubernetes_do_not_stop_the_server(
    start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod beside Services named `mnist` and `mnist-models`."""
    for prefix in ("MNIST", "MNIST_MODELS"):
        url = "tcp://10.0.171.239:8000"
        monkeypatch.setenv(f"{prefix}_SERVICE_HOST", "10.0.171.239")
        monkeypatch.setenv(f"{prefix}_SERVICE_PORT", "8000")
        monkeypatch.setenv(f"{prefix}_SERVICE_PORT_HTTP", "8000")
        monkeypatch.setenv(f"{prefix}_PORT", url)
        monkeypatch.setenv(f"{prefix}_PORT_8000_TCP", url)
        monkeypatch.setenv(f"{prefix}_PORT_8000_TCP_PROTO", "tcp")
        monkeypatch.setenv(f"{prefix}_PORT_8000_TCP_PORT", "8000")
        monkeypatch.setenv(f"{prefix}_PORT_8000_TCP_ADDR", "10.0.171.239")
    server = start_server()
    assert server.stop() == 0


@pytest.mark.parametrize("file", ["model.onnx", "model.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_model_folder_neither_hangs_nor_stops_the_server(
    start_server: Callable[..., Server], tmp_path: Path, file: str, kind: str
) -> None:
    shutil.copytree(SHIPPED_MODELS / "mnist", tmp_path / "mnist")
    shutil.copytree(SHIPPED_MODELS / "mnist", tmp_path / "odd")
    path = tmp_path / "odd" / "1" / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    server = start_server(tmp_path)
    failures = json.loads(server.get("/v2/health/ready")[1])["failures"]
    assert "not a regular file" in failures["odd/1"]
    assert server.stop() == 0
