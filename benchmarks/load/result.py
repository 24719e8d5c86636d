"""What every load generator reports, and how its process is run."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from typing import NamedTuple

from benchmarks.server_process import pinned

_PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client", "taskset": "util-linux"}


class GeneratorError(Exception):
    """A load generator failed or its report is unreadable."""


class Load(NamedTuple):
    """One load: answered requests, its duration, latencies, and failed requests."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    generator_cpu_seconds: float = 0.0
    # Open loop only: how late the generator itself sent requests.
    p99_lateness_ms: float = 0.0


def missing_tools() -> list[str]:
    """Sentences that name each missing tool and its package."""
    return [
        f"{tool} is missing: apt-get install {package}"
        for tool, package in _PACKAGES.items()
        if shutil.which(tool) is None
    ]


def run(command: list[str], core: int | None, within: float) -> tuple[str, float]:
    """Run a generator; returns its output and the CPU seconds it used. Raises GeneratorError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(  # noqa: S603 (a load generator with numbers and files of ours)
            pinned(command, core),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise GeneratorError(f"{command[0]} did not end within {within:g} seconds") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise GeneratorError(f"{command[0]} failed: {(done.stdout + done.stderr)[-400:]}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu_seconds
