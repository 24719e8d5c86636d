"""Statistics, lines of code, and what /proc tells of a server's processes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.lines import count
from benchmarks.machine import results_file
from benchmarks.processes import NotStarted, Server
from benchmarks.statistics import median, spread
from benchmarks.venvs import NotInstalled, environment

RATES = st.lists(st.floats(0.1, 1e6), min_size=1)


@given(RATES)
def test_median_and_spread_do_not_depend_on_the_order(rates):
    assert median(rates) == median(sorted(rates))
    assert spread(rates) == spread(sorted(rates))
    assert min(rates) <= median(rates) <= max(rates)


def test_spread_is_half_of_the_range_of_the_median():
    assert spread([90.0, 100.0, 110.0]) == pytest.approx(0.1)
    assert spread([100.0]) == 0.0


def test_lines_to_write_are_neither_blank_nor_comment_nor_docstring():
    text = (
        '"""What.\n\nMore.\n"""\n\n# why\nx = 1  # this\n\n\n'
        'def f():\n    """Doc."""\n    return """a\nb"""\n'
    )
    assert count(text, ".py") == 4
    assert count('{\n\n"a": 1}\n', ".json") == 2


def test_every_rival_has_a_folder_with_pinned_requirements():
    for contender in CONTENDERS:
        if contender.requirements:
            lines = contender.requirements.read_text().splitlines()
            pinned = [line for line in lines if line and not line.startswith("#")]
            assert pinned
            assert all("==" in line for line in pinned), contender.name


def test_second_run_of_a_day_gets_a_file_of_its_own(tmp_path: Path):
    machine = {"cpu": "AMD EPYC 7B13 (tm)", "cores": 2}
    now = datetime(2026, 11, 24, tzinfo=UTC)
    first = results_file(tmp_path, now, machine)
    assert first.name == "2026-11-24-2x-amd-epyc-7b13-tm.json"
    first.touch()
    assert results_file(tmp_path, now, machine).name == "2026-11-24-2x-amd-epyc-7b13-tm-2.json"


def running(code: str, scratch: Path, core: int | None = None) -> Server:
    contender = Contender("spin", "spin", "floor", ("{python}", "-c", code), {"raw": "/"})
    return Server(contender, models=scratch, venv=None, scratch=scratch, core=core)


SPAWN = """
import subprocess, sys, time
child = "import os, time; os.setsid(); end = time.time() + 1\\nwhile time.time() < end: pass"
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
    assert server.pids() == []


def test_frozen_server_uses_no_cpu_until_it_is_thawed(tmp_path: Path):
    server = running("while True: pass", tmp_path)
    try:
        server.wait_until(lambda: server.cpu_seconds() > 0.05, 20)
        server.freeze()
        before = server.cpu_seconds()
        time.sleep(0.2)
        assert server.cpu_seconds() == before
        server.thaw()
        server.wait_until(lambda: server.cpu_seconds() > before, 20)
    finally:
        server.stop()


def test_server_that_ends_says_its_last_words(tmp_path: Path):
    server = running("raise SystemExit('no such model')", tmp_path)
    with pytest.raises(NotStarted, match="no such model"):
        server.wait_until(lambda: False, 20)
    server.stop()


def test_command_that_does_not_exist_is_told_as_not_started(tmp_path: Path):
    absent = Contender("absent", "absent", "floor", ("no-such-server",), {"raw": "/"})
    with pytest.raises(NotStarted, match="no-such-server cannot be run"):
        Server(absent, models=tmp_path, venv=None, scratch=tmp_path)


def test_rival_that_is_not_installed_is_told_and_not_installed_unasked(tmp_path: Path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("nothing==1\n")
    with pytest.raises(NotInstalled, match="told to install nothing"):
        environment("no-such-rival", requirements, install=False)
    with pytest.raises(NotInstalled, match="cannot be run"):
        environment("no-such-rival", requirements, "/no/python")
