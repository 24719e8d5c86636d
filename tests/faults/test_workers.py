"""Workers that hang or die, and supervisors that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from service import pulse as pulses
from service.pulse import Pulse, WatchedProcess
from tests.conftest import SHIPPED_MODELS, Server
from tests.stops.stop import live_processes

RAW = "application/octet-stream"
BLANK = bytes(784)


def replaced(server: Server, reason: str) -> int:
    """The count of replaced workers that any worker reports."""
    name = f'mnist_workers_replaced_total{{reason="{reason}"}} '
    (line,) = [x for x in server.get("/metrics")[1].decode().splitlines() if x.startswith(name)]
    return int(float(line.removeprefix(name)))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is read
        return False
    return not state.startswith(("Z", "X"))


def answers(server: Server) -> bool:
    try:
        return server.post("/predict", BLANK, RAW)[0] == 200
    except OSError:
        return False


def test_a_stopped_worker_is_killed_and_replaced_with_one_log_line(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    assert replaced(server, "silent") == 0
    (stopped,) = server.worker_pids()
    server.wait_until(lambda: has_beaten(server))
    os.kill(stopped, signal.SIGSTOP)
    server.wait_until(lambda: not is_alive(stopped), seconds=120)
    server.wait_until(lambda: answers(server))
    assert replaced(server, "silent") == 1
    assert replaced(server, "ended") == 0
    lines = [line for line in server.log.read_text().splitlines() if "orker-1" in line]
    assert len(lines) == 1
    assert "Worker-1 did not respond for 5 s and is killed; a new worker replaces it" in lines[0]
    assert server.stop() == 0


def watched(pid: int, pulse: Pulse) -> WatchedProcess:
    process = types.SimpleNamespace(inner=types.SimpleNamespace(pid=pid))
    return WatchedProcess(process, pulse)  # type: ignore[arg-type]


def test_a_loop_that_spins_hangs() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        worker = watched(spinning.pid, Pulse(beats=1))
        assert not worker.hangs(now=0)
        assert not worker.hangs(now=4.9)
        end = time.monotonic() + 60
        while not worker.hangs(now=60):  # until it has used 0.2 s of a core
            assert time.monotonic() < end
    finally:
        spinning.kill()
        spinning.wait()


def test_a_loop_that_gets_no_core_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(beats=1)
    worker = watched(os.getpid(), pulse)
    thread = pulses.MainThread(is_runnable=True, cpu_s=7.0)
    monkeypatch.setattr(pulses, "main_thread", lambda pid: thread)
    assert not worker.hangs(now=0)
    assert not worker.hangs(now=60)
    thread = thread._replace(is_runnable=False)  # it waits for something else than a core
    assert worker.hangs(now=60.5)
    pulse.beats += 1
    assert not worker.hangs(now=61)


def test_a_worker_that_uses_no_cpu_time_before_its_first_beat_hangs() -> None:
    # It computes in a second thread, as a worker does that loads a model.
    code = "import threading\ndef load():\n while True: pass\nthreading.Thread(target=load).start()"
    loading = subprocess.Popen([sys.executable, "-c", code])
    try:
        worker = watched(loading.pid, Pulse())
        now = 0.0
        assert not worker.hangs(now)
        for _ in range(3):
            wait_for_cpu_time(loading.pid)
            now += 600
            assert not worker.hangs(now)
        wait_for_cpu_time(loading.pid)
        os.kill(loading.pid, signal.SIGSTOP)
        os.waitpid(loading.pid, os.WUNTRACED)  # it has stopped
        now += 600
        assert not worker.hangs(now)
        assert not worker.hangs(now + 59)
        assert worker.hangs(now + 60)
        assert worker.patience_s == 60
        worker.forget_silence()  # the supervisor itself did not run
        assert not worker.hangs(now + 61)
        assert not worker.hangs(now + 120)
        assert worker.hangs(now + 121)
    finally:
        loading.kill()
        loading.wait()


def test_a_worker_that_waits_for_a_trial_does_not_hang() -> None:
    idle = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.kill(idle.pid, signal.SIGSTOP)
        os.waitpid(idle.pid, os.WUNTRACED)  # it has stopped
        pulse = Pulse(is_waiting=True)
        worker = watched(idle.pid, pulse)
        assert not any(worker.hangs(now) for now in (0, 60, 600))
        pulse.is_waiting = False
        assert not worker.hangs(600)
        assert not worker.hangs(659)
        assert worker.hangs(660)
    finally:
        idle.kill()
        idle.wait()


def wait_for_cpu_time(pid: int) -> None:
    end, before = time.monotonic() + 120, pulses.process_cpu_s(pid)
    while pulses.process_cpu_s(pid) == before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_loads_is_left_alone_where_the_kernel_does_not_tell_cpu_time() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    worker = watched(gone.pid, Pulse())
    assert not any(worker.hangs(now) for now in (0, 60, 600))


@pytest.mark.parametrize("is_runnable", [True, False])
@pytest.mark.parametrize(
    ("share", "may_take"),
    [
        (1.0, 10),
        (0.5, 20),  # the other half of the core is another program's
        (0.12, 60),
    ],
)
def test_a_loop_that_computes_has_10_s_of_cpu_time(
    monkeypatch: pytest.MonkeyPatch, is_runnable: bool, share: float, may_take: float
) -> None:
    worker = watched(os.getpid(), Pulse(beats=1))
    cpu_s = 0.0
    monkeypatch.setattr(pulses, "main_thread", lambda pid: pulses.MainThread(is_runnable, cpu_s))
    assert not worker.hangs(now=0)
    for now in (5, may_take / 2, may_take - 0.5):
        cpu_s = now * share
        assert not worker.hangs(now=now)
    cpu_s = may_take * share
    assert worker.hangs(now=may_take)


def has_beaten(server: Server) -> bool:
    """Whether the worker's loop has beaten, a quarter of a second after it began to serve.

    An answer comes after all timers that were due before the request.
    """
    time.sleep(0.5)
    return server.is_ready()


def test_a_killed_worker_is_named_with_its_signal_and_counted(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    (killed,) = server.worker_pids()
    os.kill(killed, signal.SIGBUS)
    server.wait_until(lambda: answers(server) and killed not in server.worker_pids())
    assert "Worker-1 ended unexpectedly (SIGBUS)" in server.log.read_text()
    assert replaced(server, "ended") == 1
    assert server.stop() == 0


def test_a_stopped_server_that_continues_replaces_no_worker(
    start_server: Callable[..., Server],
) -> None:
    """As a suspended machine: every process is silent for longer than a worker may be."""
    server = start_server(workers=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    workers = server.worker_pids()
    everyone = [server.process.pid, *workers]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(7)  # longer than the 5 s after which a worker hangs
    for pid in everyone:  # the supervisor first, so that it sees the workers' silence
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)
    assert answers(server)
    time.sleep(2)  # four looks at the workers
    assert server.worker_pids() == workers
    assert "did not respond" not in server.log.read_text()
    assert server.stop() == 0


def test_a_hanging_worker_does_not_hold_a_stop(start_server: Callable[..., Server]) -> None:
    server = start_server(stop_timeout=600)
    (worker,) = server.worker_pids()
    assert has_beaten(server)
    os.kill(worker, signal.SIGSTOP)
    assert server.stop() == 0  # fails after 60 s
    assert not is_alive(worker)


@pytest.mark.parametrize("fatal", ["SIGKILL", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGABRT"])
def test_workers_end_with_a_killed_supervisor_and_the_next_server_starts(
    start_server: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fatal: str,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # A background job of a shell ignores SIGQUIT, and so would the server.
    before = signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    server = start_server(workers=2)
    signal.signal(signal.SIGQUIT, before)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    workers = server.worker_pids()
    assert len(workers) == 2
    (left,) = tmp_path.glob("mnist-serve-*")
    server.process.send_signal(signal.Signals[fatal])
    server.process.wait(timeout=60)
    end = time.monotonic() + 120
    while any(map(is_alive, workers)):
        assert time.monotonic() < end, "workers outlive their supervisor"
        time.sleep(0.02)
    other = start_server(ready=False, http_port=server.http_port, grpc_port=server.grpc_port)
    other.http = server.http
    other.wait_until(other.is_ready)
    assert not left.exists()
    assert other.stop() == 0
    assert list(tmp_path.glob("mnist-serve-*")) == []


def test_a_server_leaves_the_folder_of_a_running_one(
    start_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first = start_server()
    (folder,) = tmp_path.glob("mnist-serve-*")
    second = start_server()
    assert second.stop() == 0
    assert folder.exists()
    assert b"mnist_model_info" in first.get("/metrics")[1]
    assert first.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_replaces_all_workers_without_a_failed_request(
    start_server: Callable[..., Server], workers: int
) -> None:
    server = start_server(workers=workers)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == workers)
    old = server.worker_pids()
    failures: list[object] = []
    done = threading.Event()
    count = 0

    def predict() -> None:
        nonlocal count
        while not done.is_set():
            try:
                status, answer = server.post("/predict", BLANK, RAW)
            except OSError as error:
                failures.append(error)
            else:
                count += 1
                if status != 200:
                    failures.append(answer)

    client = threading.Thread(target=predict)
    client.start()
    try:
        server.wait_until(lambda: count > 10)
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: not set(old) & set(server.worker_pids()), seconds=60)
        at = count
        server.wait_until(lambda: count > at + 10)
    finally:
        done.set()
        client.join()
    assert failures == []
    assert len(server.worker_pids()) == workers
    assert replaced(server, "ended") == replaced(server, "silent") == 0
    assert server.stop() == 0


@pytest.mark.parametrize("fault", ["no repository", "no model"])
def test_a_roll_that_cannot_start_leaves_the_old_workers_serving(
    start_server: Callable[..., Server], tmp_path: Path, fault: str
) -> None:
    models = tmp_path / "models"
    shutil.copytree(SHIPPED_MODELS / "mnist" / "2", models / "mnist" / "2")
    server = start_server(models, poll_interval=86_400, workers=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    old = server.worker_pids()
    if fault == "no repository":
        models.rename(tmp_path / "moved")
    else:
        (models / "mnist" / "2" / "model.onnx").write_bytes(b"no model")
    server.process.send_signal(signal.SIGHUP)
    server.wait_until(lambda: "the old one continues" in server.log.read_text())
    assert "Cannot start: " in server.log.read_text()
    assert set(server.worker_pids()) == set(old)
    assert server.post("/predict", BLANK, RAW)[0] == 200
    # The next roll works once the fault is fixed.
    if fault == "no repository":
        (tmp_path / "moved").rename(models)
    else:
        shutil.copy(SHIPPED_MODELS / "mnist" / "2" / "model.onnx", models / "mnist" / "2")
    server.process.send_signal(signal.SIGHUP)
    server.wait_until(lambda: not set(old) & set(server.worker_pids()), seconds=60)
    assert server.post("/predict", BLANK, RAW)[0] == 200
    assert server.stop() == 0


def test_a_stop_during_a_roll_stops_old_and_new_workers(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "mnist" / "1")
    server = start_server(tmp_path, workers=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    server.process.send_signal(signal.SIGHUP)
    server.wait_until(lambda: len(server.worker_pids()) == 3)
    workers = server.worker_pids()
    assert server.stop() == 0
    assert not any(map(is_alive, workers))
    assert live_processes(server.process.pid) == []
