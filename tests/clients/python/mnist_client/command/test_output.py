"""JSON lines, CSV, the table and the progress line."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from mnist_client.command.drawing import printable
from mnist_client.command.output import FORMATS, Progress, writer
from mnist_client.results import Box, ReadDigit, Reading, Timings

from tests.clients.python.mnist_client.command.test_drawing import SEVEN, prediction

REFUSED = prediction(accepted=False, reason="unsure", prediction_set=(4, 9), hint="Write it again.")
READING = Reading(
    text="47\n4",
    lines=("47", "4"),
    digits=tuple(
        ReadDigit(Box(1, 2, 3, 4), line, each)
        for line, each in ((0, prediction()), (0, REFUSED), (1, prediction()))
    ),
    hint="",
    model_name="m",
    model_version="3",
    timings=Timings(1.0),
)


def written(capsys: pytest.CaptureFixture[str], kind: str, answer: Any, name: str = "a.png") -> str:
    reads = isinstance(answer, Reading)
    write = writer(kind, reads=reads, transport="HTTP", width=0, colour=False)
    write(name, SEVEN, answer)
    return capsys.readouterr().out


def test_json_has_the_fields_of_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(written(capsys, "jsonl", REFUSED))
    assert (line["file"], line["digit"], line["reason"]) == ("a.png", 4, "unsure")
    assert line["prediction_set"] == [4, 9]
    line = json.loads(written(capsys, "jsonl", READING))
    assert (line["text"], line["lines"]) == ("47\n4", ["47", "4"])
    assert (line["digits"][1]["box"], line["digits"][1]["accepted"]) == ([1, 2, 3, 4], False)


def test_csv_has_a_header_and_a_row_per_picture(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = csv.DictReader(io.StringIO(written(capsys, "csv", REFUSED, 'a,"b".png')))
    assert row["file"] == 'a,"b".png'
    assert (row["digit"], row["accepted"], row["prediction_set"]) == ("4", "no", "4 9")
    assert row["p9"] == row["probability"] == "0.1"
    (row,) = csv.DictReader(io.StringIO(written(capsys, "csv", READING)))
    assert (row["text"], row["digits"], row["not_accepted"]) == ("47\n4", "3", "1")


def test_the_table_has_a_line_per_picture(capsys: pytest.CaptureFixture[str]) -> None:
    header, line = written(capsys, "table", REFUSED).splitlines()
    assert header.split() == ["digit", "probability", "accepted", "file"]
    assert line.split() == ["4", "10.000%", "no:", "unsure", "a.png"]
    header, line = written(capsys, "table", READING).splitlines()
    assert line.split() == ["47", "/", "4", "2", "of", "3", "a.png"]
    assert header.index("file") == line.index("a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_names_cannot_steer_a_terminal_or_break_the_output(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = written(capsys, kind, prediction(), "\x1b[2J\udcff.png")
    shown.encode()
    if kind != "csv":  # which is for programs, and keeps names as they are
        assert "\x1b" not in shown
    assert printable("\x1b[2Jé.png") == "\\x1b[2Jé.png"


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "total", "shown"),
    [
        (True, 100, "50 of 100 pictures"),
        (True, None, "50 pictures"),
        (True, 5, ""),
        (False, 99, ""),
    ],
)
def test_progress_is_for_long_lists_on_a_terminal(
    terminal: bool, total: int | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("mnist_client.command.output.time.monotonic", lambda: now)
    screen = Screen(terminal)
    progress = Progress(total, screen)
    now = 10.0
    progress.show(50)
    assert (shown in screen.getvalue()) if shown else (screen.getvalue() == "")
    if shown:
        assert screen.getvalue().endswith(", 5 per second")
        progress.show(51)  # in the same moment
        assert "51" not in screen.getvalue()
        progress.clear()
        assert screen.getvalue().endswith("\r\x1b[K")
