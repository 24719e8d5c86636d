"""Models that crash ONNX Runtime, and workers that crash again and again: the server stays."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_crashing, publish_identity, publish_trap
from tests.faults.test_workers import answers, replaced

RAW = "application/octet-stream"
BLANK = bytes(784)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED_MODELS / "mnist" / "2", tmp_path / "models" / "mnist" / "2")
    return tmp_path / "models"


def index(server: Server) -> dict[str, dict[str, Any]]:
    status, entries = server.post("/v2/repository/index", b"{}", "application/json")
    assert status == 200
    return {entry["name"]: entry for entry in entries}


def count(server: Server, text: str) -> int:
    return server.log.read_text().count(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_crashes_onnx_runtime_is_refused_and_the_others_are_served(
    start_server: Callable[..., Server], models: Path, workers: int
) -> None:
    publish_crashing(models)
    publish_identity(models, "BYTES")
    server = start_server(models, workers=workers)
    server.wait_until(lambda: count(server, "Serving mnist") == workers)
    served = server.worker_pids()
    entries = index(server)
    assert entries["mnist"]["state"] == entries["identity_bytes"]["state"] == "READY"
    assert "ONNX Runtime crashed twice (SIG" in entries["crashing"]["reason"]
    assert "export it again" in entries["crashing"]["reason"]
    assert count(server, "model crashing is not served: ONNX Runtime crashed twice") == workers
    assert count(server, "it is tried once more") == 1  # the other worker takes the result
    # An operator asks for it while the server serves.
    status, answer = server.post("/v2/repository/models/crashing/load", b"", "application/json")
    assert (status, "crashed twice" in answer["error"]) == (400, True), answer
    assert server.post("/predict", BLANK, RAW)[0] == 200
    assert server.worker_pids() == served
    assert server.stop() == 0


def test_a_model_that_crashes_is_refused_while_the_server_serves_and_loaded_once_it_is_mended(
    start_server: Callable[..., Server], models: Path, tmp_path: Path
) -> None:
    server = start_server(models, poll_interval=0.1)
    served = server.worker_pids()
    publish_crashing(tmp_path)
    (tmp_path / "crashing").rename(models / "crashing")
    server.wait_until(
        lambda: "crashed twice" in index(server).get("crashing", {}).get("reason", "")
    )
    publish_identity(tmp_path, "FP32")
    shutil.rmtree(models / "crashing")
    (tmp_path / "identity_fp32").rename(models / "crashing")
    server.wait_until(lambda: index(server)["crashing"]["state"] == "READY")
    assert server.worker_pids() == served
    assert server.stop() == 0


@pytest.mark.parametrize("serves", [False, True])
def test_a_model_that_is_not_tried_and_crashes_costs_two_workers_and_not_the_server(
    start_server: Callable[..., Server], models: Path, tmp_path: Path, serves: bool
) -> None:
    """Its card says that mnist-train made it, as that of a large model need not."""
    publish_crashing(tmp_path)
    folder = tmp_path / "crashing" / "1"
    sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {"schema": 1, "recipe": {}, "versions": {}, "sha256": sha256, "batching": True}
    (folder / "model.json").write_text(json.dumps(card))
    if not serves:
        folder.parent.rename(models / "crashing")
    server = start_server(models, poll_interval=0.1)
    if serves:
        folder.parent.rename(models / "crashing")

    def is_refused() -> bool:
        try:
            return "2 workers ended while" in index(server).get("crashing", {}).get("reason", "")
        except OSError:
            return False

    server.wait_until(is_refused)
    assert replaced(server, "ended") == 2
    assert count(server, "Worker-1 ended unexpectedly (SIGABRT)") == 2
    assert server.post("/predict", BLANK, RAW)[0] == 200
    assert server.stop() == 0


def test_the_check_reports_a_model_that_crashes(models: Path) -> None:
    publish_crashing(models)
    command = [sys.executable, "-m", "service.cli", "--check", "--check-seconds", "600"]
    command += ["--models", str(models)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode in (1, 2), done.stderr  # 2: a port is taken on this machine
    assert "crashed twice (SIG" in " ".join(done.stdout.split())


def test_a_stop_during_a_trial_ends_everything(
    start_server: Callable[..., Server], models: Path
) -> None:
    publish_crashing(models)
    server = start_server(models, ready=False)

    def trying() -> list[int]:
        return [host for worker in server.worker_pids() for host in children(worker)]

    server.wait_until(lambda: trying() != [])
    hosts = trying()
    assert server.stop() == 0
    end = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in hosts):
        assert time.monotonic() < end
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_our_own_exports_need_no_trial(
    start_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server()
    assert list(tmp_path.glob("mnist-serve-*/state/*.trial")) == []
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_that_crash_their_worker_again_and_again_do_not_end_the_server(
    start_server: Callable[..., Server], models: Path, workers: int
) -> None:
    publish_trap(models)
    server = start_server(models, workers=workers)
    server.wait_until(lambda: count(server, "Serving mnist") == workers)
    body = b'{"inputs":[{"name":"spring","datatype":"BOOL","shape":[],"data":[%s]}]}'
    crashed, end = 0, time.monotonic() + 240
    while crashed < 4:  # with one worker, each within seconds of its start
        assert time.monotonic() < end
        try:
            server.post("/v2/models/trap/infer", body % b"true", "application/json")
        except (OSError, http.client.HTTPException) as error:
            # A connection that is refused has found no worker.
            reason = getattr(error, "reason", error)
            crashed += not isinstance(reason, ConnectionRefusedError)
        server.wait_until(lambda n=crashed: count(server, "(SIGABRT); a new worker") >= n)
    server.wait_until(lambda: len(server.worker_pids()) == workers and answers(server))
    assert server.post("/v2/models/trap/infer", body % b"false", "application/json")[0] == 200
    assert replaced(server, "ended") >= 4
    assert "crash loop" not in server.log.read_text()
    assert server.stop() == 0


def test_a_worker_that_cannot_start_does_not_end_a_server_whose_other_worker_serves(
    start_server: Callable[..., Server], models: Path
) -> None:
    server = start_server(models, workers=2)
    server.wait_until(lambda: count(server, "Serving mnist") == 2)
    kept, victim = server.worker_pids()
    killed = kill_before_they_serve(server, victim, kept, 7)
    assert killed >= 7
    assert server.post("/predict", BLANK, RAW)[0] == 200
    assert "crash loop" not in server.log.read_text()
    server.wait_until(lambda: count(server, "Serving mnist") == 3)
    assert server.stop() == 0


def kill_before_they_serve(server: Server, victim: int, kept: int, times: int) -> int:
    """Kill a worker, and then each that replaces it as soon as it exists."""
    killed: list[int] = []
    end = time.monotonic() + 240
    while len(killed) < times and server.process.poll() is None:
        assert time.monotonic() < end
        for pid in server.worker_pids():
            if pid != kept and pid not in killed and (killed or pid == victim):
                os.kill(pid, signal.SIGSEGV)
                killed.append(pid)
        time.sleep(0.005)
    return len(killed)


def test_a_server_whose_workers_never_serve_ends_with_status_1(
    start_server: Callable[..., Server], models: Path
) -> None:
    server = start_server(models, ready=False)
    server.wait_until(lambda: server.worker_pids() != [])
    kill_before_they_serve(server, server.worker_pids()[0], -1, 99)
    assert server.process.wait(timeout=60) == 1
    assert count(server, "Worker crash loop: worker-1 ended 6 times before it served") == 1
    assert count(server, "ended unexpectedly (SIGSEGV)") == 6
