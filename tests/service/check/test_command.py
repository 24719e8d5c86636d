from __future__ import annotations

import pytest

from service.check.command import report
from service.check.finding import error, ok, warning

FINDINGS = [
    error("http_port", "Port 80 is privileged.", "Choose another."),
    ok("clock", "2026-11-27."),
    warning("model a/b/c/d/e/f", "It is " + "long " * 40, "Shorten it."),
]


def test_the_worst_is_last_and_what_to_do_follows_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = report(FINDINGS, colours=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2] == "ok       clock         2026-11-27."
    assert lines[3] == "warning  model a/b/c/d/e/f"
    assert lines[-4:] == [
        "error    http_port     Port 80 is privileged.",
        " " * 23 + "-> Choose another.",
        "",
        "1 error, 1 warning: the server would not start, or not be ready.",
    ]


def test_verdicts() -> None:
    assert report(FINDINGS[1:2], colours=False).endswith("\n\nNothing to correct.")
    assert "but not as it should be" in report(FINDINGS[1:], colours=False)


def test_colours_are_of_the_level_alone_and_names_cannot_add_any() -> None:
    text = report([warning("m\033[5m", "a\033[31mb", "c\nd")], colours=True)
    assert text.count("\033") == 2
    assert "\033[33mwarning  \033[0mm\\x1b[5m" in text
    assert "c\\nd" in text
