from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.observe.logs import JsonFormatter
from service.observe.stderr import StderrHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, to read from and to write to; whatever is still open is closed."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def handler_of(descriptor: int) -> StderrHandler:
    handler = StderrHandler(os.fdopen(descriptor, "w", closefd=False))
    handler.setFormatter(JsonFormatter())
    return handler


def write(handler: logging.Handler, message: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%s", (message,), None))


def test_lines_are_written_at_once_while_there_is_room(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    write(handler, "one")
    write(handler, "x" * 20_000)
    content = os.read(pipe[0], 1 << 16)
    assert [json.loads(line)["message"] for line in content.splitlines()] == ["one", "x" * 20_000]


def test_a_pipe_that_nobody_reads_does_not_hold_the_writer(pipe: tuple[int, int]) -> None:
    """This call would never return if a write waited. Then the reader gets every line, in order."""
    handler = handler_of(pipe[1])
    messages = [f"{number} {'x' * 500}" for number in range(1000)]
    for message in messages:
        write(handler, message)
    content = b""
    while content.count(b"\n") < len(messages):
        content += os.read(pipe[0], 1 << 16)
    assert [json.loads(line)["message"] for line in content.splitlines()] == messages


def test_lines_that_find_no_room_at_all_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    count = 5000
    for number in range(count):
        write(handler, f"{number} {'x' * 500}")
    content = b""
    while b"were dropped" not in content:
        content += os.read(pipe[0], 1 << 16)
    *kept, last = [json.loads(line)["message"] for line in content.splitlines()]
    assert last == f"{count - len(kept)} log lines were dropped: nothing read standard error."
    assert [int(message.split()[0]) for message in kept] == list(range(len(kept)))
    assert len(kept) > 1000
    # From here on lines are written at once again.
    for thread in threading.enumerate():
        if thread.name == "log":
            thread.join(60)
    write(handler, "again")
    assert json.loads(os.read(pipe[0], 1 << 16))["message"] == "again"


def test_text_that_utf_8_cannot_encode_is_escaped(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    handler.setFormatter(logging.Formatter("\ud800 %(message)s"))
    write(handler, "one")
    assert os.read(pipe[0], 1 << 16) == b"\\ud800 one\n"
    for number in range(5000):  # also in the line about those that were dropped
        write(handler, f"{number} {'x' * 500}")
    content = b""
    while b"were dropped" not in content:
        content += os.read(pipe[0], 1 << 16)
    assert content.splitlines()[-1].startswith(b"\\ud800 ")


def test_a_reader_that_has_gone_costs_only_the_lines(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    os.close(pipe[0])
    for number in range(1000):
        write(handler, f"{number} {'x' * 500}")


def test_a_file_gets_every_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        handler = StderrHandler(file)
        for number in range(1000):
            write(handler, str(number))
    assert path.read_text().split() == [str(number) for number in range(1000)]


def test_a_stream_in_memory_gets_every_line() -> None:
    stream = io.StringIO()
    write(StderrHandler(stream), "one")
    assert stream.getvalue() == "one\n"
