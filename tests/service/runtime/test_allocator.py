from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from service.runtime import allocator
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
