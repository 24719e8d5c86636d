from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from service.runtime import allocator
from service.runtime.allocator import Returns
from tests.conftest import ROOT

# Frees blocks of several sizes in an order that leaves holes, from two threads.
PROGRAM = """
import sys, threading
from pathlib import Path
from service.runtime.allocator import return_memory

if sys.argv[1] == "returned":
    assert return_memory()

def resident_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

kept = []

def work():
    for size in (8 << 20, 4 << 20, 2 << 20, 1 << 20, 1 << 19):
        for _ in range(4):
            blocks = []
            for _ in range((32 << 20) // size):
                blocks.append(bytearray(size))
                kept.append(bytes(1000))
            del blocks

before = resident_mb()
for _ in range(3):
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(resident_mb() - before)
"""


def left_mb(how: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_large_blocks_go_back_to_the_system() -> None:
    assert left_mb("returned") < 20


def test_a_system_without_mallopt_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.return_memory()


def test_the_memory_of_this_process_is_known() -> None:
    before = allocator.resident()
    content = b"x" * (64 << 20)  # every page is written
    assert allocator.resident() - before > len(content) / 2
    del content


def test_without_proc_the_memory_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(allocator, "_STATM", tmp_path / "statm")
    assert allocator.resident() == 0


MB = 1 << 20


def test_memory_is_returned_a_second_after_large_requests() -> None:
    returns = Returns(100 * MB, 0.0)
    assert not returns.due(2 * MB, 102 * MB, 1.0)
    assert not returns.due(0, 102 * MB, 1.9)
    assert not returns.due(100_000, 102 * MB, 2.0)  # busy again
    assert not returns.due(10_000, 102 * MB, 3.0)
    assert returns.due(10_000, 102 * MB, 3.1) == "large requests"
    assert not returns.due(0, 102 * MB, 9.0)  # once is enough


def test_memory_is_returned_again_and_again_while_the_process_is_larger_than_it_was() -> None:
    returns = Returns(110 * MB, 0.0)
    assert not returns.due(0, 100 * MB, 5.0)
    due = [bool(returns.due(0, 105 * MB, 5.0 + second)) for second in range(11)]
    assert due == [True, *[False] * 4, True, *[False] * 4, True]
    assert not returns.due(MB, 120 * MB, 20.0)  # it has work
    assert not returns.due(0, 104 * MB, 30.0)  # small enough
