from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import new_key
from service.observe.logs import (
    JsonFormatter,
    TextFormatter,
    is_for_people,
    logging_config,
    only_problems,
)
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
    for name in ("_granian", "granian.access"):
        assert config["loggers"][name]["level"] == granian


KEYS_AT_DEBUG = """
import logging.config
import hpack
from service.observe.logs import logging_config
from service.settings import Settings

logging.config.dictConfig(logging_config(Settings(log_level="debug")))
logging.getLogger().setLevel("DEBUG")  # as a client with the scope admin can
logging.getLogger("service").debug("a line")
block = hpack.Encoder().encode([("x-api-key", "mnist_secret"), ("authorization", "Bearer mnist_x")])
assert len(hpack.Decoder().decode(block)) == 2
"""


def test_at_level_debug_no_library_writes_the_keys_of_callers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEYS_AT_DEBUG], capture_output=True, text=True, check=True
    )
    assert "a line" in done.stderr
    assert "mnist_" not in done.stderr


KEY = new_key()


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (f"Nothing is at /v2/{KEY}; GET / lists all endpoints.", "Nothing is at /v2/mnist_***;"),
        (f"Model '{KEY[:-2]}...' is not loaded.", "Model 'mnist_***...' is"),
        (f"Nothing is at /a/{KEY[:20]}...; GET /", "Nothing is at /a/mnist_***...; GET /"),
        (f"Nothing is at /x?key={KEY.upper()}&y", "?key=MNIST_***&y"),
        ("Host is 'Bearer 0123456789abcdef', which", "Host is 'Bearer ***', which"),
        ("'bearer\t0123456789abcdef0123\xff'", "'bearer\t***'"),
        ("one key, in the header Authorization (Bearer KEY) or x", "(Bearer KEY) or x"),
        ("Model 'mnist_with_a_long_name_2' is loaded.", "'mnist_with_a_long_name_2'"),
    ],
)
def test_what_looks_like_a_key_is_masked_wherever_it_is(message: str, written: str) -> None:
    line = json.loads(JsonFormatter().format(record("%s", message, request_id=KEY)))
    assert written in line["message"]
    assert line["request_id"] == "mnist_***"
    text = TextFormatter().format(record("%s", message, request_id=KEY))
    assert written.replace("\t", "\\t") in text
    assert text.endswith("request_id=mnist_***")


def test_a_key_in_a_traceback_is_masked() -> None:
    try:
        raise ValueError(f"Bearer {KEY} and {KEY}")
    except ValueError:
        entry = record("x")
        entry.exc_info = sys.exc_info()
    for formatter in (JsonFormatter(), TextFormatter()):
        assert "Bearer *** and mnist_***" in formatter.format(entry)


HEADERS_OF_GRPC = """
import asyncio
import gc
import logging.config
from service.observe.logs import logging_config
from service.settings import Settings

logging.config.dictConfig(logging_config(Settings()))
grpc = logging.getLogger("grpc._cython.cygrpc")
try:
    b"\\xff".decode()
except UnicodeDecodeError:
    grpc.exception("Invalid encoding on %s", b"a secret\\xff")

async def decode():
    b"a secret\\xff".decode()

async def main():
    task = asyncio.create_task(decode())
    await asyncio.sleep(0)
    del task
    gc.collect()

asyncio.run(main())
grpc.error("Something else: %s", "a text")
"""


def test_headers_that_grpcio_quotes_are_not_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEADERS_OF_GRPC], capture_output=True, text=True, check=True
    )
    assert "a secret" not in done.stderr
    assert "Something else: a text" in done.stderr


ESCAPED = [
    *(chr(code) for code in (*range(32), *range(0x7F, 0xA0))),
    "\u200b",  # zero width
    "\u2028",
    "\u2029",
    "\u202e",  # text that follows is shown from right to left
    "\u2066",
    "\ufeff",
    "\U000e0041",  # a tag: invisible
    "\ud800",
]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize("char", ESCAPED, ids=ascii)
def test_every_character_that_is_not_printable_is_escaped(
    formatter: logging.Formatter, char: str
) -> None:
    entry = record("%s", f"a{char}b", field=f"c{char}d")
    try:
        raise ValueError(f"e{char}f")
    except ValueError:
        entry.exc_info = sys.exc_info()
    line = formatter.format(entry)
    assert line.isprintable()
    if isinstance(formatter, JsonFormatter):
        parsed = json.loads(line)
        assert (parsed["message"], parsed["field"]) == (f"a{char}b", f"c{char}d")
        assert parsed["exception"].endswith(f"e{char}f")


@given(st.text(), st.text(), st.text())
def test_a_record_is_one_printable_line_in_both_formats(
    message: str, field: str, error: str
) -> None:
    entry = record("%s", message, field=field)
    entry.exc_info = (ValueError, ValueError(error), None)
    for formatter in (TextFormatter(), JsonFormatter()):
        assert formatter.format(entry).isprintable()


def test_text_in_other_scripts_stays_as_it_is() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        assert "模型 Größe ☃ 🙂" in formatter.format(record("模型 Größe ☃ 🙂"))


PAST_LOGGING = """
import logging.config, sys, threading, warnings
from service.observe.logs import logging_config
from service.settings import Settings

logging.config.dictConfig(logging_config(Settings(log_format=sys.argv[1])))
warnings.warn("a warning\\n12:00:00 ERROR forged\\x1b[2J")
logging.getLogger("_granian").warning("of Granian\\nforged")

def fail() -> None:
    raise ValueError("in a thread\\nforged")

thread = threading.Thread(target=fail, name="a\\nb")
thread.start()
thread.join()

class Fails:
    def __del__(self) -> None:
        raise ValueError("in a destructor\\nforged")

Fails()
raise ValueError("of the process\\u2028forged")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_libraries_and_python_write_past_logging_is_one_line_each(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAST_LOGGING, log_format],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    lines = done.stderr.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    sentences = (
        "UserWarning: a warning",
        "of Granian",
        "The thread a",
        "in a destructor",
        "of the process",
    )
    for line, sentence in zip(lines, sentences, strict=True):
        assert sentence in line
        assert "forged" in line
        if log_format == "json":
            assert json.loads(line)["level"] in ("warning", "error", "critical")
        else:
            assert re.match(r"\d\d:\d\d:\d\d (WARNING|ERROR  |CRITICAL) ", line)


def test_only_text_on_a_terminal_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_for_people(Settings(log_format="text"))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert is_for_people(Settings())
    assert not is_for_people(Settings(log_format="json"))


@pytest.mark.parametrize(("level", "shown"), [("info", "bwe"), ("debug", "dibwe"), ("error", "e")])
def test_a_start_for_people_shows_problems_and_the_banner(
    caplog: pytest.LogCaptureFixture, level: Any, shown: str
) -> None:
    caplog.set_level(level.upper())

    def say() -> list[str]:
        caplog.clear()
        logger = logging.getLogger("service.x")
        logger.debug("d")
        logger.info("i")
        logger.info("b", extra={"is_bare": True})
        logger.warning("w")
        logger.error("e")
        return caplog.messages

    with only_problems(Settings(log_level=level)):
        assert "".join(say()) == shown
    assert len(say()) == len(shown) + (level == "info")
