"""What `mnist-serve --check` says about one subject."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """How bad a finding is; the worst one is the exit status."""

    OK = 0
    WARNING = 1  # the server starts and is ready, but something works badly or not at all
    ERROR = 2  # the server would not start, or not be ready


class Finding(NamedTuple):
    """One sentence or more about a subject, and what to do unless it is OK."""

    severity: Severity
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding(Severity.OK, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.WARNING, subject, text, remedy)


def error(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.ERROR, subject, text, remedy)


def count(number: int, thing: str) -> str:
    """A number of things in words, as `1 worker` or `2 workers`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
