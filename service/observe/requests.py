"""What is recorded of every request, whichever way it came: its id, its metric, its log line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from itertools import count
from time import perf_counter

from service.observe.logs import requests as log
from service.observe.metrics import Metrics

# What a caller may choose as a request id: anything else could forge log lines or headers.
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_SERVER_FAULTS = {"500", "INTERNAL", "UNKNOWN"}


class RequestRecorder:
    """Gives requests their ids, and writes down how they ended."""

    def __init__(self, metrics: Metrics, log_requests: str = "errors") -> None:
        self._metrics = metrics
        self._log_all = log_requests == "all"
        self._log_errors = log_requests != "none"
        # Unique over workers and restarts, and 20 times cheaper than a UUID a request.
        self._prefix = os.urandom(6).hex()
        self._next: Callable[[], int] = count(1).__next__

    def request_id(self, wanted: str | None) -> str:
        """The caller's own id where it is fit to be used, else a new one."""
        if wanted and _SAFE_ID.fullmatch(wanted):
            return wanted
        return f"{self._prefix}-{self._next():x}"

    def finished(
        self, transport: str, operation: str, request_id: str, code: str, start: float, error: str
    ) -> None:
        """Record an answer; `start` is perf_counter() at arrival, `error` empty for a success."""
        seconds = perf_counter() - start
        self._metrics.observe_request(transport, operation, code, seconds)
        if self._log_all or (error and self._log_errors):
            log.log(
                logging.ERROR if code in _SERVER_FAULTS else logging.INFO,
                "%s",
                error or "Answered.",
                extra={
                    "fields": {
                        "request_id": request_id,
                        "transport": transport,
                        "operation": operation,
                        "code": code,
                        "duration_ms": round(seconds * 1000, 3),
                    }
                },
            )
