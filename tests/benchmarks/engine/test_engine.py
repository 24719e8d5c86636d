"""The options of ONNX Runtime: each gives the default answers; a short run is reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import served_models
from benchmarks.engine.measure import measure
from benchmarks.engine.report import markdown, write_report
from benchmarks.engine.results import EngineResults, Measured, Plan, read
from benchmarks.engine.sessions import CONFIGURATIONS, Configuration, make_run, write_files
from benchmarks.paths import RESULTS, ROOT
from tests.benchmarks import HOST


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("model", served_models.NAMES)
def test_every_configuration_answers_as_the_default_does(
    model: str, configuration: Configuration, tmp_path: Path
):
    files = write_files(model, tmp_path)
    images = served_models.test_images(130)
    _, expected = make_run(CONFIGURATIONS[0], files)(images)
    _, got = make_run(configuration, files)(images)
    assert np.abs(got - expected).max() < 1e-5


def test_a_short_run_is_measured_and_reported(tmp_path: Path):
    plan = Plan(rows=(1, 8), rounds=2, seconds=0.01, runs_before_memory=1)
    chosen = [each for each in CONFIGURATIONS if each.name in ("default, 1 thread", "as served")]
    path = measure(["mlp"], chosen, plan, tmp_path)
    assert path.name.endswith("-engine.json")
    for each in json.loads(path.read_text())["measured"]:
        assert len(each["load_ms"]) == 2
        assert all(len(each["seconds"][rows]) == 2 for rows in ("1", "8"))
        assert 20 < each["loaded_mb"] <= each["used_mb"] <= each["peak_mb"]
    assert "| as served |" in write_report(path)


def test_speed_is_compared_round_by_round():
    def measured(configuration: str, *seconds: float) -> Measured:
        return Measured(
            configuration=configuration,
            model="mlp",
            load_ms=[1.0],
            seconds={512: list(seconds)},
            loaded_mb=1.0,
            used_mb=2.0,
            peak_mb=3.0,
        )

    results = EngineResults(
        date="d",
        machine=HOST,
        plan=Plan(rows=[512], rounds=3, runs_before_memory=1),
        onnxruntime="1",
        # The machine was ten times slower in the second round, for both.
        measured=[measured("first", 1.0, 10.0, 1.0), measured("second", 0.5, 5.0, 0.5)],
    )
    text = markdown(results)
    assert "| first | 1.0 | 512 images/s | 1 | 2 (3) |" in text
    assert "| second | 1.0 | 2.00 x | 1 | 2 (3) |" in text


def test_docs_have_the_tables_of_the_committed_results():
    docs = (ROOT / "docs" / "decisions" / "engine.md").read_text()
    files = sorted(RESULTS.glob("*-engine*.json"))
    assert files
    for path in files:
        assert markdown(read(path)) in docs
