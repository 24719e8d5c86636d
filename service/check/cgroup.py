"""The limits that a container, or a unit of systemd, has from its control groups (cgroups).

Source: cgroups(7). The limits of ancestors apply too. Inside a container the hierarchy may begin
with the container's own group, while /proc still shows the path of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """Bytes; None if there is no limit."""
    texts = (*_read("memory", "memory.max"), *_read("memory", "memory.limit_in_bytes"))
    # Version 1 writes the largest number of pages if there is no limit.
    return min(
        (int(text) for text in texts if text.isdigit() and int(text) < 1 << 60), default=None
    )


def cpu_limit() -> float | None:
    """CPU time per second, in seconds; None if there is no limit."""
    limits = []
    for text in _read("cpu", "cpu.max"):  # such as "150000 100000", or "max 100000"
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    periods = _read("cpu", "cpu.cfs_period_us")
    for quota, period in zip(_read("cpu", "cpu.cfs_quota_us"), periods, strict=False):
        if quota.isdigit() and period.isdigit():  # -1 is no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def task_limit() -> int | None:
    """Processes and threads together; None if there is no limit."""
    texts = _read("pids", "pids.max")
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _read(controller: str, name: str) -> Iterator[str]:
    """The contents of a file in the groups of this process, and in all of their ancestors."""
    for folder in _groups(controller):
        try:
            yield (folder / name).read_text().strip()
        except OSError:
            continue


def _groups(controller: str) -> Iterator[Path]:
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = ROOT / controller if controllers else ROOT
        yield top
        folder = top
        for part in Path(place).parts[1:]:
            folder /= part
            yield folder
