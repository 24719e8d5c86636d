"""Every parser keeps its promises for its corpus and for some thousand mutations of it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz.__main__ import CORPUS, NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_keeps_its_promises_for_mutated_input(name: str, tmp_path: Path) -> None:
    # The runs are many and say nothing of coverage: it would make them three times as long.
    environ = {key: value for key, value in os.environ.items() if "COVERAGE" not in key}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name],
        cwd=tmp_path,
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Done " in done.stderr + done.stdout


def test_every_harness_has_a_corpus_and_every_corpus_a_harness() -> None:
    assert [path.stem for path in sorted(CORPUS.glob("*.zip"))] == NAMES
    for path in CORPUS.glob("*.zip"):
        with zipfile.ZipFile(path) as corpus:
            assert 0 < len(corpus.namelist()) <= 200


def test_a_broken_promise_fails_the_run_and_names_its_input(tmp_path: Path) -> None:

    (tmp_path / "input").write_bytes(b"\0max_batch_size: 1")
    code = (
        "import service.repository.triton_config as t\n"
        "t.read = lambda folder: t.TritonConfig(max_batch_size=7)\n"
        "import sys; sys.argv = ['', 'config', 'input']\n"
        "import tests.fuzz.__main__ as m; m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "AssertionError" in done.stderr
