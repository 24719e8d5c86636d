from __future__ import annotations

from pathlib import Path

import pytest

from service.check import cgroup


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hierarchy of a container, whose own group is the root of all controllers."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    for controller in ("memory", "cpu", "pids"):
        (tmp_path / controller).mkdir()
    return tmp_path


def test_without_files_nothing_is_limited(root: Path) -> None:
    assert cgroup.memory_limit() is None
    assert cgroup.cpu_limit() is None
    assert cgroup.task_limit() is None


def test_limits_of_version_2(root: Path) -> None:
    (root / "memory.max").write_text("536870912\n")
    (root / "cpu.max").write_text("150000 100000\n")
    (root / "pids.max").write_text("100\n")
    assert cgroup.memory_limit() == 536_870_912
    assert cgroup.cpu_limit() == 1.5
    assert cgroup.task_limit() == 100


def test_max_is_no_limit(root: Path) -> None:
    (root / "memory.max").write_text("max\n")
    (root / "cpu.max").write_text("max 100000\n")
    (root / "pids.max").write_text("max\n")
    assert (cgroup.memory_limit(), cgroup.cpu_limit(), cgroup.task_limit()) == (None, None, None)


@pytest.mark.parametrize("place", ["/a/b", "/"])
def test_the_smallest_limit_of_all_ancestors_holds(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(cgroup, "GROUPS", root / "groups")
    (root / "groups").write_text(f"9:cpu,cpuacct:{place}\n4:memory:{place}\n0::{place}\n")
    for folder in (root / "memory", root / "memory/a", root / "memory/a/b", root / "cpu/a"):
        folder.mkdir(exist_ok=True)
    (root / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (root / "memory/a/memory.limit_in_bytes").write_text("1000\n")
    (root / "memory/a/b/memory.limit_in_bytes").write_text("2000\n")
    (root / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (root / "cpu/a/cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu/a/cpu.cfs_period_us").write_text("100000\n")
    is_limited = place != "/"
    assert cgroup.memory_limit() == (1000 if is_limited else None)
    assert cgroup.cpu_limit() == (0.5 if is_limited else None)
