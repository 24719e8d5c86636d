"""The report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.training.run.test_plots import PICTURES
from tests.training.runs import evaluation_of


def test_report_is_self_contained(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert set(re.findall(r'(?:src|href)="?(.{5})', page)) == {"data:"}
    assert "expected calibration error" in page
    assert f"{evaluation_of(run)['accuracy']:.2%}" in page


def test_metrics_of_the_plots_are_in_evaluation_json(run: Path) -> None:
    evaluation = evaluation_of(run)
    assert sum(interval["images"] for interval in evaluation["reliability"]) == 10_000
    assert len(evaluation["before_calibration"]["reliability"]) == 15
    assert evaluation["accuracy_at_coverage"][-1]["accuracy"] == pytest.approx(
        evaluation["accuracy"]
    )
    confidences = [mistake["confidence"] for mistake in evaluation["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert "NaN" not in (run / "evaluation.json").read_text()
    json.loads((run / "evaluation.json").read_text(), parse_constant=pytest.fail)
