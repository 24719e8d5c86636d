from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import sys
from typing import Any

import pytest

from service.observe.logs import JsonFormatter, TextFormatter, logging_config
from service.settings import Settings

HOSTILE = "Model 'x\n12:00:00 ERROR forged\r\x1b[2J\x9b\u2028\x00' is not loaded."


def record(message: str = "Hello %s.", *args: object, **fields: object) -> logging.LogRecord:
    entry = logging.LogRecord("service.x", logging.WARNING, __file__, 1, message, args, None)
    if fields:
        entry.fields = fields
    return entry


def test_a_json_line_has_time_level_logger_process_message_and_fields() -> None:
    line = json.loads(JsonFormatter().format(record("Hello %s.", "you", code="404", ms=1.5)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("pid") > 0
    assert line == {
        "level": "warning",
        "logger": "service.x",
        "message": "Hello you.",
        "code": "404",
        "ms": 1.5,
    }


@pytest.mark.parametrize("message", [HOSTILE, "\ud800", "\N{SNOWMAN}", '"}\n{"level": "error"'])
def test_any_message_is_one_line_of_json(message: str) -> None:
    text = JsonFormatter().format(record("%s", message))
    assert "\n" not in text
    assert "\r" not in text
    assert json.loads(text)["message"] == message


def test_a_field_that_json_does_not_know_is_written_as_text() -> None:
    line = json.loads(JsonFormatter().format(record("x", path=b"\xff", error=ValueError("bad"))))
    assert (line["path"], line["error"]) == (r"b'\xff'", "bad")


def test_a_traceback_goes_into_the_same_line_of_json() -> None:
    failed = record("It failed")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        failed.exc_info = sys.exc_info()
    text = JsonFormatter().format(failed)
    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("ValueError: two\nlines")


def test_a_text_line_has_time_level_message_and_fields() -> None:
    text = TextFormatter().format(record("Hello %s.", "you", code="404"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING Hello you\. code=404", text)


def test_a_client_cannot_forge_a_text_line_or_send_commands_to_the_terminal() -> None:
    text = TextFormatter().format(record("%s", HOSTILE, request_id="a\nb"))
    assert text.isprintable()
    assert r"'x\n12:00:00 ERROR forged\r\x1b[2J\x9b\u2028\x00'" in text
    assert text.endswith(r"request_id=a\nb")


@pytest.mark.parametrize(
    ("log_format", "terminal", "formatter"),
    [
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
        ("text", False, TextFormatter),
        ("json", True, JsonFormatter),
    ],
)
def test_the_format_is_that_of_the_settings_and_auto_asks_the_terminal(
    monkeypatch: pytest.MonkeyPatch, log_format: Any, terminal: bool, formatter: type
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    config = logging_config(Settings(log_format=log_format))
    assert config["formatters"]["lines"]["()"] is formatter


@pytest.mark.parametrize(
    ("level", "granian"), [("debug", "DEBUG"), ("info", "WARNING"), ("error", "WARNING")]
)
def test_granian_is_quiet_unless_the_level_is_debug(level: Any, granian: str) -> None:
    config = logging_config(Settings(log_level=level))
    assert config["root"]["level"] == level.upper()
    assert {logger["level"] for logger in config["loggers"].values()} == {granian}
