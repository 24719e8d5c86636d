"""A run that can be looked at: report, pictures, events, and lines in a log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.small_run import epochs_of, evaluation_of, train

PICTURES = ("loss", "accuracy", "confusion", "reliability", "coverage", "mistakes", "filters")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = ["--recipe", "mlp", "--hidden", "32", "--epochs", "2", "--train-limit", "500"]
    return train(tmp_path_factory.mktemp("report"), *arguments, "--no-publish")


def test_the_report_is_one_file_that_needs_no_other(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert set(re.findall(r'(?:src|href)="?(.{5})', page)) == {"data:"}
    assert "expected calibration error" in page
    assert f"{evaluation_of(run)['accuracy']:.2%}" in page


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_a_file_too(run: Path, name: str) -> None:
    with Image.open(run / f"{name}.png") as image:
        assert image.format == "PNG"
        assert image.width > 400
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10  # something is drawn


def test_the_figures_of_the_pictures_are_json(run: Path) -> None:
    evaluation = evaluation_of(run)
    assert sum(each["images"] for each in evaluation["reliability"]) == 10_000
    assert len(evaluation["before_calibration"]["reliability"]) == 15
    assert evaluation["accuracy_at_coverage"][-1]["accuracy"] == pytest.approx(
        evaluation["accuracy"]
    )
    confidences = [each["confidence"] for each in evaluation["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert "NaN" not in (run / "evaluation.json").read_text()
    json.loads((run / "evaluation.json").read_text(), parse_constant=pytest.fail)


def test_tensorboard_reads_what_the_epochs_gave(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for tag, key in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        scalars = events.Scalars(tag)
        assert [each.step for each in scalars] == [1, 2]
        expected = [figures[key] for figures in epochs_of(run)]
        assert [each.value for each in scalars] == pytest.approx(expected)
    assert events.Scalars("images per second")[0].value > 100


def test_a_log_has_one_readable_line_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "2", "--train-limit", "200", "--no-publish"]
    train(tmp_path, *few, "--validation-size", "100")
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert "\x1b" not in text
    for words in ("training loss", "validation accuracy", "images/s"):
        assert words in lines[0]
