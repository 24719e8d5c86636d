"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from training.hardware import cpu_model


def describe() -> dict[str, Any]:
    """CPU, cores, memory, system, load, the tools and the revision of this repository."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
        "wrk": _first_line(["wrk", "--version"]),
        "h2load": _first_line(["h2load", "--version"]),
        "revision": _first_line(["git", "describe", "--always", "--dirty"]),
    }


def host_class(machine: dict[str, Any]) -> str:
    """A short name of the kind of machine, for the name of the results file."""
    cpu = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    return f"{machine['cores']}x-{cpu or 'cpu'}"


def results_file(folder: Path, now: datetime, machine: dict[str, Any], what: str = "") -> Path:
    """A file of that day and kind of machine that is not there yet."""
    stem = f"{now:%Y-%m-%d}-{host_class(machine)}" + (f"-{what}" if what else "")
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def _first_line(command: list[str]) -> str:
    # wrk prints its version and exits with 1.
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout or done.stderr).split("\n", 1)[0].strip()
