"""Structured logs on standard error: one JSON object per line, or text for people."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

from service.settings import Settings

request_log = logging.getLogger("service.requests")

# Error messages quote what clients send: unescaped, a model's name could forge a line, or send
# commands to the terminal. JSON escapes these characters anyway.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """One line for people: time of day, level, message, then extra fields as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        fields = getattr(record, "fields", {})
        line = " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])
        return _CONTROL.sub(lambda match: repr(match.group())[1:-1], line)


def logging_config(settings: Settings) -> dict[str, Any]:
    """Configuration for logging.config.dictConfig, which covers Granian's loggers as well."""
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    level = settings.log_level.upper()
    # At level info, Granian logs every step; this server logs those that matter.
    granian = "DEBUG" if level == "DEBUG" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": TextFormatter if text else JsonFormatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "lines",
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {"_granian": {"level": granian}, "granian.access": {"level": granian}},
    }
