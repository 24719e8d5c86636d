"""The machine that a benchmark ran on, and the name of its results file."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from benchmarks.paths import ROOT
from training.hardware import cpu_model


@dataclass(frozen=True, slots=True)
class Host:
    """CPU, cores, memory, system, load averages, tools, and the revision of this repository."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    wrk: str
    h2load: str
    revision: str
    load_average_before: list[float]
    load_average_after: list[float] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Cores and CPU, as part of a file name."""
        cpu = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")
        return f"{self.cores}x-{cpu or 'cpu'}"


def describe() -> Host:
    """The machine that runs this process."""
    return Host(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        wrk=_first_line(["wrk", "--version"]),
        h2load=_first_line(["h2load", "--version"]),
        revision=revision(ROOT),
        load_average_before=load_average(),
    )


def load_average() -> list[float]:
    """The load averages of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def revision(tree: Path) -> str:
    """The revision of a checkout, with `-dirty` where files differ from it."""
    return _first_line(["git", "-C", str(tree), "describe", "--always", "--dirty"])


def results_file(folder: Path, now: datetime, host: Host, kind: str = "") -> Path:
    """A new file named for the day, the kind of machine and the kind of benchmark."""
    stem = f"{now:%Y-%m-%d}-{host.kind}" + (f"-{kind}" if kind else "")
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def _first_line(command: list[str]) -> str:
    # wrk prints its version and exits with 1.
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (constant commands)
    except OSError:
        return ""
    return (done.stdout or done.stderr).split("\n", 1)[0].strip()
