"""Names of results files."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.host import results_file
from tests.benchmarks import HOST


def test_second_run_of_a_day_gets_its_own_file(tmp_path: Path):
    machine = dataclasses.replace(HOST, cpu="AMD EPYC 7B13 (tm)", cores=2)
    now = datetime(2026, 11, 24, tzinfo=UTC)
    first = results_file(tmp_path, now, machine)
    assert first.name == "2026-11-24-2x-amd-epyc-7b13-tm.json"
    first.touch()
    assert results_file(tmp_path, now, machine).name == "2026-11-24-2x-amd-epyc-7b13-tm-2.json"
