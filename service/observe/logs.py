"""Structured logs on standard error: one JSON object per line, or text for people.

Error messages quote what clients send. Unescaped, the name of a model could forge a line, hide a
part of one, or send commands to the terminal. So both formats escape every character that Python
does not count as printable (str.isprintable): control characters, line and paragraph separators,
marks that change the direction of the text. A traceback is part of its line.

Messages may also quote a key that a client put into the wrong place: a path, a request id, the name
of a model. Both formats mask what looks like a key of mnist-keys, or follows `Bearer`, wherever it
is. Lines in which a library quotes raw headers are not written at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from service.access.keys import KEY_PREFIX
from service.observe.stderr import StderrHandler
from service.settings import Settings

request_log = logging.getLogger("service.requests")
log = logging.getLogger(__name__)

# A key of mnist-keys has 43 characters after its prefix; names of models and metrics have fewer.
# A quotation may have cut off any number of them, and then ends with dots.
_CREDENTIAL = re.compile(
    rf"(?P<key>{KEY_PREFIX})(?:[\w-]{{40,}}|[\w-]{{8,}}(?=\.\.\.))"
    r"|(?P<scheme>\bbearer(?: |\t|\\t)+)[^\s\"'\\]{16,}",
    re.ASCII | re.IGNORECASE,
)
_MASK = "***"


def masked(text: str) -> str:
    """The text without the credentials that can be recognised as such."""
    lower = text.lower()  # nearly every line is done with this; the expression takes 4 us
    if KEY_PREFIX not in lower and "bearer" not in lower:
        return text
    return _CREDENTIAL.sub(lambda match: (match["key"] or match["scheme"]) + _MASK, text)


def _printable(text: str, escape: Callable[[str], str]) -> str:
    """The text with every character that is not printable replaced by its escape sequence."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else escape(char) for char in text])


def printable(text: str) -> str:
    """The text with an escape sequence for each character that could act on a terminal."""
    return _printable(text, _escape_text)


def _escape_json(char: str) -> str:
    return json.dumps(char)[1:-1]  # pure ASCII; beyond U+FFFF a surrogate pair


def _escape_text(char: str) -> str:
    return repr(char)[1:-1]


class JsonFormatter(logging.Formatter):
    """One line of JSON: time (RFC 3339, UTC), level, logger, pid, message, then extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = masked(json.dumps(line, ensure_ascii=False, default=str))
        return _printable(text, _escape_json)


class TextFormatter(logging.Formatter):
    """One line for people: time of day, level, message, extra fields as key=value, traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        if getattr(record, "is_bare", False):  # a line of the banner
            return record.getMessage()
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])

    def format(self, record: logging.LogRecord) -> str:
        return _printable(masked(super().format(record)), _escape_text)


def stderr_handler(stream: TextIO) -> logging.Handler:
    """The handler of all logs. Also sends to it what Python and libraries write past logging.

    Those are warnings, errors that end the process or a thread, and errors in destructors.
    """
    # gRPC's C++ writes to standard error by itself; its errors arrive here as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    warnings.showwarning = _log_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    handler = StderrHandler(stream)
    handler.addFilter(_quotes_no_header)
    return handler


def _quotes_no_header(record: logging.LogRecord) -> bool:
    """Whether a record may be written: grpcio quotes headers that are not UTF-8, as bytes.

    Such a header may be a key with one byte too many. Anyone can send it, and the gate answers it.
    Of such a path, asyncio quotes the error, and so the path, when grpcio's task has failed.
    """
    if not record.name.startswith(("grpc", "asyncio")):
        return True
    arguments = record.args if isinstance(record.args, tuple) else ()
    error = record.exc_info[1] if record.exc_info else None
    return not any(
        isinstance(each, bytes | UnicodeError) for each in (record.msg, error, *arguments)
    )


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of warnings.showwarning, which writes the line of source on a line of its own."""
    log.warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """In place of sys.excepthook."""
    if issubclass(kind, KeyboardInterrupt):  # Ctrl-C: the process ends as it was asked to
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("The process ends by an error.", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    """In place of threading.excepthook."""
    if not issubclass(arguments.exc_type, SystemExit):
        name = arguments.thread.name if arguments.thread else "a thread"
        error = arguments.exc_value or arguments.exc_type()
        log.error("The thread %s ends by an error.", name, exc_info=error)


def _log_unraisable(arguments: sys.UnraisableHookArgs) -> None:
    """In place of sys.unraisablehook: an error in a destructor or a callback."""
    error = arguments.exc_value or arguments.exc_type()
    log.error(
        "%s: %r", arguments.err_msg or "Exception ignored in", arguments.object, exc_info=error
    )


def is_text(settings: Settings) -> bool:
    """Whether log lines are text for people."""
    return settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())


def is_for_people(settings: Settings) -> bool:
    """Whether the log goes to a terminal, as text."""
    return sys.stderr.isatty() and is_text(settings)


@contextlib.contextmanager
def only_problems(settings: Settings) -> Iterator[None]:
    """Hold back what is neither a problem nor of the banner, which sums it up for all workers.

    With log_level debug, nothing is held back.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or getattr(record, "is_bare", False)

    handlers = logging.getLogger().handlers if settings.log_level == "info" else []
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def logging_config(settings: Settings) -> dict[str, Any]:
    """Configuration for logging.config.dictConfig, which covers Granian's loggers as well."""
    text = is_text(settings)
    level = settings.log_level.upper()
    # At level info, Granian logs every step; this server logs those that matter.
    granian = "DEBUG" if level == "DEBUG" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": TextFormatter if text else JsonFormatter}},
        "handlers": {
            "stderr": {
                "()": stderr_handler,
                "stream": "ext://sys.stderr",
                "formatter": "lines",
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "_granian": {"level": granian},
            "granian.access": {"level": granian},
            # At level debug, it writes every header of gRPC, and so the keys of callers.
            "hpack": {"level": "WARNING"},
        },
    }
