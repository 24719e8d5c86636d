"""The bar on a terminal, and the lines in a log."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.training.runs import command, train


def test_log_has_one_line_per_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--recipe", "book-30-30", "--epochs", "2", "--train-limit", "200", "--no-publish"]
    train(tmp_path, *few, "--validation-size", "100")
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert "\x1b" not in text
    for words in ("training loss", "validation accuracy", "images/s"):
        assert words in lines[0]


def test_terminal_shows_a_bar_with_loss_accuracy_rate_and_time_left(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    few = ["--recipe", "book-30-30", "--epochs", "30", "--train-limit", "3000", "--no-publish"]
    with subprocess.Popen(
        command(tmp_path, *few),
        stderr=terminal,
        env=os.environ | {"COLUMNS": "140", "TERM": "xterm"},
    ) as job:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal reports that it is closed
            while part := os.read(controller, 65_536):
                shown += part
    os.close(controller)
    assert job.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(
        r"epoch \d+/30 .*% +loss \d\.\d+ accuracy \d+\.\d+% [\d,]+ images/s \d+:\d\d", text
    )
