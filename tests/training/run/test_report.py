"""A run that can be looked at: report, pictures, events, and lines in a log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.commands.test_train import command
from tests.training.small_run import epochs_of, evaluation_of, train
from training.run.tensorboard import EventFile

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


def test_a_resumed_run_shows_each_epoch_once_in_tensorboard(tmp_path: Path) -> None:
    first = EventFile(tmp_path / "tensorboard", 0)
    for epoch in (1, 2, 3):
        first.add(epoch, {"train_loss": 1.0})
    first.close()  # killed while the third was being saved: it is run again
    second = EventFile(tmp_path / "tensorboard", 2)
    for epoch in (3, 4):
        second.add(epoch, {"train_loss": 0.5})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(each.step, each.value) for each in events.Scalars("loss/train")]
    assert scalars == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]


def test_events_that_find_no_room_are_one_error(tmp_path: Path) -> None:
    script = (
        "import resource, sys, pathlib\n"
        "from training.run.tensorboard import EventFile\n"
        "from training.errors import TrainingError\n"
        "events = EventFile(pathlib.Path(sys.argv[1]), 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for epoch in range(99): events.add(epoch, {'train_loss': 1.0})\n"
        "except TrainingError as error: print(error)\n"
        "events.close()\n"
        # Coverage writes what it saw when the process ends.
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x"], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_terminal_gets_a_bar_with_loss_accuracy_rate_and_time_left(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    few = ["--recipe", "book-30-30", "--epochs", "30", "--train-limit", "3000", "--no-publish"]
    with subprocess.Popen(
        command(tmp_path, *few), stderr=theirs, env=os.environ | {"COLUMNS": "140", "TERM": "xterm"}
    ) as job:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's way to say that it is closed
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    assert job.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(
        r"epoch \d+/30 .*% +loss \d\.\d+ accuracy \d+\.\d+% [\d,]+ images/s \d+:\d\d", text
    )
