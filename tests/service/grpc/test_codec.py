"""Runs the tests of codec_cases.py in a process of their own.

The codec needs our stubs, and other tests import those of tritonclient: both define the protobuf
package `inference`, so one process cannot have both.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_cases_of_the_codec_pass() -> None:
    cases = Path(__file__).with_name("codec_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
