"""The engine's options: each gives the default's answers, and a short run is reported whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from benchmarks.engine import CONFIGURATIONS, Configuration, Plan, make_run, measure, write_files
from benchmarks.engine_report import markdown, write_report
from benchmarks.settings import RESULTS, ROOT


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("model", models.NAMES)
def test_every_configuration_answers_as_the_default_does(
    model: str, configuration: Configuration, tmp_path: Path
):
    files = write_files(model, tmp_path)
    images = models.test_images(130)
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
    machine = {"revision": "r", "cores": 2, "cpu": "c", "load_average_before": [0.0]}
    common = {"model": "mlp", "load_ms": [1.0], "loaded_mb": 1.0, "used_mb": 2.0, "peak_mb": 3.0}
    told = {
        "date": "d",
        "machine": machine,
        "onnxruntime": "1",
        "plan": {"rows": [512], "rounds": 3, "runs_before_memory": 1},
        "measured": [
            # The machine was ten times slower in the second round, and hit both.
            common | {"configuration": "first", "seconds": {"512": [1.0, 10.0, 1.0]}},
            common | {"configuration": "second", "seconds": {"512": [0.5, 5.0, 0.5]}},
        ],
    }
    text = markdown(told)
    assert "| first | 1.0 | 512 images/s | 1 | 2 (3) |" in text
    assert "| second | 1.0 | 2.00 x | 1 | 2 (3) |" in text


def test_the_docs_say_what_the_committed_results_say():
    docs = (ROOT / "docs" / "performance.md").read_text()
    files = sorted(RESULTS.glob("*-engine*.json"))
    assert files
    for path in files:
        assert markdown(json.loads(path.read_text())) in docs
