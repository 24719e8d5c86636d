"""The processes of a server: counted, suspended, stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.contenders import Contender
from benchmarks.server_process import NotStarted, Server


def running(code: str, scratch: Path, core: int | None = None) -> Server:
    contender = Contender(
        name="spin",
        title="spin",
        kind="floor",
        command=("{python}", "-c", code),
        endpoints={"raw": "/"},
    )
    return Server(contender, models=scratch, venv=None, scratch=scratch, core=core)


SPAWN = """
import subprocess, sys, time
child = "import os, time; os.setsid()\\nwhile time.process_time() < 1: pass"
child += "\\ntime.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


def test_processes_that_leave_their_parent_are_counted_and_stopped(tmp_path: Path):
    server = running(SPAWN, tmp_path)
    try:
        server.wait_until(lambda: server.cpu_seconds() > 0.3, 20)
        assert len(server.pids()) == 2
        total, largest = server.peak_rss_mb()
        assert 0 < largest < total
    finally:
        server.stop()
    # A killed process whose parent has ended exists until the system's first process reaps it.
    end = time.monotonic() + 60
    while server.pids():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_frozen_server_uses_no_cpu_until_it_is_thawed(tmp_path: Path):
    server = running("while True: pass", tmp_path)
    try:
        server.wait_until(lambda: server.cpu_seconds() > 0.05, 20)
        server.freeze()
        before = server.cpu_seconds()
        assert server.thread_cpu_seconds() == pytest.approx(before, abs=0.05)  # ticks are coarse
        time.sleep(0.2)
        assert server.cpu_seconds() == before
        server.thaw()
        server.wait_until(lambda: server.cpu_seconds() > before, 20)
    finally:
        server.stop()


TWO_SIGNALS = """
import signal, sys
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
while len(signals) < 2:
    print("waiting", flush=True)
    signal.pause()
print("stopped", flush=True)
"""


def test_stop_repeats_a_signal_that_the_server_missed(tmp_path: Path):
    server = running(TWO_SIGNALS, tmp_path)
    server.wait_until(lambda: "waiting" in server.log.read_text(), 20)
    server.stop()
    assert server.log_end().endswith("stopped")


def test_error_of_a_server_that_exits_has_the_end_of_its_log(tmp_path: Path):
    server = running("raise SystemExit('no such model')", tmp_path)
    with pytest.raises(NotStarted, match="no such model"):
        server.wait_until(lambda: False, 20)
    server.stop()


def test_missing_command_is_reported_as_not_started(tmp_path: Path):
    absent = Contender(
        name="absent",
        title="absent",
        kind="floor",
        command=("no-such-server",),
        endpoints={"raw": "/"},
    )
    with pytest.raises(NotStarted, match="no-such-server cannot be run"):
        Server(absent, models=tmp_path, venv=None, scratch=tmp_path)
