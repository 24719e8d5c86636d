"""What needs no real limit; tests/e2e/test_check.py has the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.check import cgroup, machine
from service.check.finding import Severity
from service.settings import Settings
from tests.certificates import Authority


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control group of a container."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    return tmp_path


def test_cores_that_no_worker_uses_are_mentioned(group: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    finding = machine.cores(Settings(workers=cores))
    assert finding.severity is Severity.OK
    assert "would use all" not in finding.text
    if cores > 1:
        assert f"--workers {cores} would use all" in machine.cores(Settings()).text


def test_less_than_a_core_is_enough_for_one_worker(group: Path) -> None:
    (group / "cpu.max").write_text("50000 100000")
    assert machine.cores(Settings()).severity is Severity.OK
    finding = machine.cores(Settings(workers=2))
    assert (finding.severity, finding.remedy) == (Severity.WARNING, "Set workers to 1.")


def test_memory_grows_with_workers_requests_and_models(group: Path) -> None:
    (group / "memory.max").write_text(str(512 * 1024 * 1024))
    assert machine.memory(Settings(), 10**6).severity is Severity.OK
    assert machine.memory(Settings(workers=2), 10**6).severity is Severity.WARNING
    assert machine.memory(Settings(max_inflight_bytes=2**29), 0).severity is Severity.WARNING
    assert machine.memory(Settings(), 10**9).severity is Severity.ERROR
    assert "set workers" not in machine.memory(Settings(), 10**9).remedy


def test_threads_of_a_container_are_counted(group: Path) -> None:
    assert list(machine.tasks(Settings())) == []
    (group / "pids.max").write_text("48")
    assert [each.severity for each in machine.tasks(Settings())] == [Severity.OK]
    (group / "pids.max").write_text("47")
    assert [each.severity for each in machine.tasks(Settings())] == [Severity.ERROR]


def test_certificates_are_examined(tmp_path: Path) -> None:
    assert list(machine.tls(Settings())) == []
    authority = Authority(tmp_path)
    files = authority.server(days=100)

    def findings(**more: Any) -> list[tuple[Severity, str]]:
        pair = {"tls_certificate": str(files.certificate), "tls_key": str(files.key)}
        found = list(machine.tls(Settings(**pair, **more)))
        return [(finding.severity, finding.subject) for finding in found]

    assert findings() == [(Severity.OK, "TLS")]
    asks: dict[str, Any] = {"tls_client_auth": "required", "tls_client_ca": str(authority.ca)}
    assert findings(**asks)[1:] == [(Severity.WARNING, "health_port")]
    assert findings(**asks, health_port=8002) == [(Severity.OK, "TLS")]
    authority.server(days=10)
    assert findings() == [(Severity.WARNING, "TLS")]
    authority.server(days=-1)
    assert findings() == [(Severity.ERROR, "TLS")]


def test_a_missing_file_says_nothing_about_the_clock(tmp_path: Path) -> None:
    assert machine.clock([tmp_path / "missing"]).severity is Severity.OK
