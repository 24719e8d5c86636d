"""What is recorded of every request, over HTTP and gRPC alike: its id, its metric, its log line."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from itertools import count
from time import perf_counter
from types import TracebackType
from typing import Literal

from service.core.errors import InternalError, ServiceError
from service.core.trace import Trace
from service.observe.logs import request_log
from service.observe.metrics import Metrics
from service.observe.traces import Traces

# What a caller may choose as a request id: anything else could forge log lines or headers.
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_SERVER_FAULTS = {"500", "INTERNAL", "UNKNOWN"}
_SUCCESS = {"http": "200", "grpc": "OK"}
# 499 is nginx's status for a client that closed the connection first.
_CANCELLED = {"http": "499", "grpc": "CANCELLED"}

# Of each kind (operation and code); a line costs more than to refuse a request.
_LINES_PER_SECOND = 10

Transport = Literal["http", "grpc"]


class RequestRecorder:
    """Gives requests their ids. `Attempt` records how each of them ended.

    `clock` returns seconds, for the limit on log lines. `traces` is None if tracing is off.
    """

    def __init__(
        self,
        metrics: Metrics,
        log_requests: str = "errors",
        clock: Callable[[], float] = perf_counter,
        traces: Traces | None = None,
    ) -> None:
        self._clock = clock
        self.traces = traces
        self.metrics = metrics
        self.logs_all = log_requests == "all"
        self.logs_errors = log_requests != "none"
        self._floods: dict[tuple[str, str, str], _Flood] = {}
        # Unique over workers and restarts, and 20 times cheaper than a UUID per request.
        self._prefix = os.urandom(6).hex()
        self._next: Callable[[], int] = count(1).__next__

    def request_id(self, proposal: str | None) -> str:
        """The client's own id if it is safe to log and to send back, else a new one."""
        if proposal and _SAFE_ID.fullmatch(proposal):
            return proposal
        return f"{self._prefix}-{self._next():x}"

    def refused(
        self, transport: Transport, operation: str, request_id: str, error: ServiceError
    ) -> None:
        """Record a request that is refused before any work on it, in place of an `Attempt`."""
        code = str(error.http_status) if transport == "http" else error.grpc_code
        self.metrics.request(transport, operation, code).observe(0.0)
        if self.logs_errors:
            self.log(transport, operation, request_id, code, 0.0, error.log_message)

    def log(
        self,
        transport: Transport,
        operation: str,
        request_id: str,
        code: str,
        seconds: float,
        message: str,
        failure: BaseException | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Write the log line of a request, unless there are too many of its kind.

        Lines about failures, which have a traceback, and with log_requests all are all written.
        """
        left_out = 0
        if failure is None and not self.logs_all:
            kind = (transport, operation, code)
            flood = self._floods.get(kind)
            if flood is None:
                flood = self._floods[kind] = _Flood()
            now = self._clock()
            if now >= flood.end:
                left_out = flood.left_out
                flood.end, flood.lines, flood.left_out = now + 1.0, 0, 0
            if flood.lines == _LINES_PER_SECOND:
                flood.left_out += 1
                return
            flood.lines += 1
        fields: dict[str, str | float] = {"request_id": request_id}
        if trace is not None:
            fields["trace_id"] = f"{trace.trace_id:032x}"
        fields |= {
            "transport": transport,
            "operation": operation,
            "code": code,
            "duration_ms": round(seconds * 1000, 3),
        }
        if left_out:
            fields["left_out"] = left_out
        request_log.log(
            logging.ERROR if code in _SERVER_FAULTS else logging.INFO,
            "%s",
            message,
            exc_info=failure,
            extra={"fields": fields},
        )

    def log_left_out(self) -> None:
        """Write how many lines were left out of floods that are over. Called every half second."""
        now = self._clock()
        for (transport, operation, code), flood in self._floods.items():
            if flood.left_out and now >= flood.end:
                fields = {"transport": transport, "operation": operation, "code": code}
                request_log.info(
                    "And %d more in the last second.",
                    flood.left_out,
                    extra={"fields": {**fields, "left_out": flood.left_out}},
                )
                flood.end, flood.lines, flood.left_out = now + 1.0, 0, 0


class _Flood:
    """The log lines of one kind in the second that ends at `end`: written and left out."""

    __slots__ = ("end", "left_out", "lines")

    def __init__(self) -> None:
        self.end = 0.0
        self.lines = self.left_out = 0


class Attempt:
    """One request over either transport: `with Attempt(...)` around all of its work.

    Records the metric and, if the settings ask for it, the log line. Every exception leaves the
    block as a ServiceError or as CancelledError: anything unexpected becomes an InternalError that
    names the request id, and is always logged, with its traceback. `code` is the status to record
    for a block that ends without an exception, `trace` is None for a request that is not traced.
    A class with slots rather than a generator, because one is made per request.
    """

    __slots__ = ("_operation", "_recorder", "_request_id", "_start", "_trace", "_transport", "code")

    def __init__(
        self,
        recorder: RequestRecorder,
        transport: Transport,
        operation: str,
        request_id: str,
        trace: Trace | None = None,
    ) -> None:
        self._recorder = recorder
        self._transport: Transport = transport
        self._operation = operation
        self._request_id = request_id
        self._trace = trace
        self.code = _SUCCESS[transport]

    def __enter__(self) -> Attempt:
        """Start the clock."""
        self._start = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record how the request ended; raise InternalError for an unexpected exception."""
        seconds = perf_counter() - self._start
        code, message, is_unexpected = self.code, "", False
        if isinstance(error, asyncio.CancelledError):
            code = _CANCELLED[self._transport]
        elif isinstance(error, Exception):
            answer: ServiceError | type[ServiceError] = InternalError
            if isinstance(error, ServiceError):
                answer, message = error, error.log_message
            else:
                is_unexpected, message = True, "The request failed."
            code = str(answer.http_status) if self._transport == "http" else answer.grpc_code
        recorder, operation = self._recorder, self._operation
        recorder.metrics.request(self._transport, operation, code).observe(seconds)
        if is_unexpected or recorder.logs_all or (message and recorder.logs_errors):
            recorder.log(
                self._transport,
                operation,
                self._request_id,
                code,
                seconds,
                message or "Answered.",
                error if is_unexpected else None,
                self._trace,
            )
        if self._trace is not None and recorder.traces is not None:
            recorder.traces.end(self._trace, code)
        if error is not None:
            # A function that raised it may refer to it. Then its traceback, which refers to the
            # function and its callers, would keep the body until the next garbage collection.
            error.__traceback__ = error.__cause__ = error.__context__ = None
        if is_unexpected:
            raise InternalError.of(self._request_id) from error
