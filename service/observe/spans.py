"""Makes OpenTelemetry's spans of the traces that have ended, and exports them.

Theory of operation: one thread per worker takes traces from `Traces.ended`, makes spans of them and
gives these to OpenTelemetry's exporter, which sends them over HTTP and tries again for a while. The
event loop never waits for it. While the collector does not answer, the queue fills, and what does
not fit is counted and dropped.

The spans are made here rather than by OpenTelemetry's tracer, because their times and ids are known
already, and because this costs the event loop nothing. OpenTelemetry's own BatchSpanProcessor has
no count of what it drops that does not need its metrics too.

A request is a span of kind SERVER. Its children are `receive` (until the body has arrived),
`decode` (until its rows are queued), `queue`, `run` and `encode` (from the last run to the answer).
A run of a model is a span `batch` in a trace of its own: it belongs to several requests. It has a
link to the span `run` of each request that is traced, and that span has a link to it.

Source: OpenTelemetry's semantic conventions for HTTP and RPC spans. Their `url.path`,
`client.address` and `user_agent.original` are left out: callers write them.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from threading import Thread
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import PROCESS_PID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from service import __version__
from service.core.errors import excerpt
from service.core.trace import MOST_STEPS, Batch, Trace
from service.observe import metrics
from service.observe.logs import masked
from service.observe.traces import Traces

log = logging.getLogger(__name__)

_BATCH = 64  # traces per export; encoding more would hold Python's global lock for long
_REMINDER_S = 60.0  # between two lines about a collector that takes no traces
# Of the flush at a stop. The supervisor takes a worker for hung whose loop is silent for 5 s.
_FLUSH_S = 3.0
_FAILING_FLUSH_S = 0.5  # while the collector takes no traces
_LONGEST_PROBLEM = 300  # characters
_LONGEST_ANSWER = 64 * 1024  # bytes that are read of the collector's answer
_CREDENTIAL_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
_PASSWORD = re.compile(r"//[^/@\s]*@")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
# The codes of gRPC that the conventions count as errors of the server.
_GRPC_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_FAILED = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)
# The children that are no steps have the ids after theirs.
_RECEIVE, _DECODE, _ENCODE = MOST_STEPS + 1, MOST_STEPS + 2, MOST_STEPS + 3


class SpanExporter:
    """Exports the traces of one worker, in a thread.

    Where to and how follows from OpenTelemetry's environment variables: OTEL_EXPORTER_OTLP_*,
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_BSP_SCHEDULE_DELAY. Raises RuntimeError for
    one that it cannot use.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._delay_s = _milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        self._problem = _Problem()
        try:
            self._exporter = OTLPSpanExporter(session=_session(self._problem.note))
        except Exception as error:  # it raises what its parts raise
            self._problem.note(str(error))
        if self._problem.text:
            raise RuntimeError(
                f"the variables OTEL_EXPORTER_OTLP_* cannot be used: {excerpt(self._problem.text)}"
            )
        self._resource = _resource()
        self._scope = InstrumentationScope("mnist-service", __version__)
        self._counted = 0  # of `traces.lost`
        self._dropped = 0  # since the last line about it
        self._silent_until = 0.0
        self._is_failing = False
        self._stops = False
        self._thread = Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Export what has ended, for at most this long; a collector that fails gets less time.

        It blocks; call it off the event loop.
        """
        self._stops = True
        self._traces.is_due.set()
        self._thread.join(min(seconds, _FAILING_FLUSH_S if self._is_failing else _FLUSH_S))
        if self._thread.is_alive() and not self._is_failing:
            log.warning("The last traces are lost: the collector does not take them in time.")
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        ended, is_due = self._traces.ended, self._traces.is_due
        while not self._stops:
            is_due.wait(self._delay_s)
            is_due.clear()
            self._count_lost()
            while ended:
                self._export([ended.popleft() for _ in range(min(_BATCH, len(ended)))])

    def _count_lost(self) -> None:
        if lost := self._traces.lost - self._counted:
            self._counted += lost
            self._dropped += lost
            metrics.traces_dropped("queue", lost)

    def _export(self, ended: list[Trace]) -> None:
        self._problem.text = ""
        try:
            spans = [span for trace in ended for span in self.spans(trace)]
            is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever it is, the next traces may do better
            is_sent, self._problem.text = False, excerpt(f"{type(error).__name__}: {error}")
        if is_sent:
            metrics.traces_exported(len(ended))
            if self._is_failing:
                self._is_failing, self._silent_until = False, 0.0
                log.info("Traces are exported again.")
            return
        metrics.traces_dropped("export", len(ended))
        self._dropped += len(ended)
        self._is_failing = True
        self._count_lost()
        now = time.monotonic()
        if now >= self._silent_until:
            log.warning(
                "Traces cannot be exported, and %d were dropped since the last such line; requests "
                "are served as before: %s",
                self._dropped,
                self._problem.text,
            )
            self._silent_until, self._dropped = now + _REMINDER_S, 0

    def spans(self, trace: Trace) -> Iterator[ReadableSpan]:
        """The spans of a request, and those of its runs that no other request had made."""
        own = _context(
            trace.trace_id, trace.span_id, state=TraceState.from_header([masked(trace.state)])
        )

        def at(seconds: float) -> int:
            return trace.wall_ns + round((seconds - trace.began) * 1e9)

        def child(
            name: str, number: int, start: float, end: float, error: str = "", *links: Link
        ) -> ReadableSpan:
            return self._span(
                name,
                _context(trace.trace_id, trace.step_id(number)),
                own,
                at(start),
                at(max(start, end)),
                {"error.type": error} if error else {},
                links,
            )

        yield self._server_span(trace, own, at)
        if not trace.is_message:
            yield child("receive", _RECEIVE, trace.began, trace.handled)
        queued: float | None = None
        number, has_decoded, last = 0, False, 0.0
        for number, step in enumerate(list(trace.steps), 1):
            if isinstance(step, float):
                queued = step
                if not has_decoded:
                    has_decoded = True
                    yield child("decode", _DECODE, trace.handled, step)
                continue
            if queued is not None:
                yield child("queue", number - 1, queued, step.start)
                queued = None
            link = Link(_context(step.trace_id, step.span_id))
            yield child("run", number, step.start, step.split, step.error, link)
            last = step.split
            if not step.is_sent:
                step.is_sent = True
                yield self._batch_span(step, at)
        if queued is not None:  # refused, expired or cancelled before its run ended
            yield child("queue", number, queued, trace.ended, trace.code)
        elif last:
            yield child("encode", _ENCODE, last, trace.ended)

    def _server_span(
        self, trace: Trace, own: SpanContext, at: Callable[[float], int]
    ) -> ReadableSpan:
        attributes: dict[str, str | int] = {"mnist.request_id": masked(trace.request_id)}
        if trace.method:
            method = trace.method if trace.method in _METHODS else "_OTHER"
            route = trace.route.replace("<", "{").replace(">", "}")
            name = f"{method} {route}" if route else method
            is_error = trace.code >= "500"
            attributes["http.request.method"] = method
            attributes["http.response.status_code"] = int(trace.code)
            if route:
                attributes["http.route"] = route
        else:
            name = "message" if trace.is_message else trace.route
            is_error = trace.code in _GRPC_ERRORS
            attributes["rpc.system.name"] = "grpc"
            attributes["rpc.method"] = trace.route
            attributes["rpc.response.status_code"] = trace.code
        if is_error:
            attributes["error.type"] = trace.code
        batch = next((step for step in trace.steps if isinstance(step, Batch)), None)
        if batch is not None:
            attributes["mnist.model"] = batch.model
            attributes["mnist.model_version"] = batch.version
        if trace.left_out:
            attributes["mnist.steps_left_out"] = trace.left_out
        is_remote = not trace.is_message
        return self._span(
            name,
            own,
            _context(trace.trace_id, trace.parent_id, is_remote) if trace.parent_id else None,
            at(trace.began),
            at(trace.ended),
            attributes,
            kind=SpanKind.INTERNAL if trace.is_message else SpanKind.SERVER,
        )

    def _batch_span(self, batch: Batch, at: Callable[[float], int]) -> ReadableSpan:
        attributes: dict[str, str | int | float] = {
            "mnist.model": batch.model,
            "mnist.model_version": batch.version,
            "mnist.requests": batch.requests,
            "mnist.images": batch.rows,
            "mnist.join_seconds": batch.joined - batch.start,
            "mnist.inference_seconds": batch.inferred - batch.joined,
            "mnist.split_seconds": batch.split - batch.inferred,
        }
        if batch.error:
            attributes["error.type"] = batch.error
        return self._span(
            "batch",
            _context(batch.trace_id, batch.span_id),
            None,
            at(batch.start),
            at(batch.split),
            attributes,
            [Link(_context(*member)) for member in batch.members],
        )

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start: int,
        end: int,
        attributes: Mapping[str, str | int | float],
        links: Sequence[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            links=links,
            kind=kind,
            status=_FAILED if "error.type" in attributes else _UNSET,
            start_time=start,
            end_time=end,
            instrumentation_scope=self._scope,
        )


def _context(
    trace_id: int, span_id: int, is_remote: bool = False, state: TraceState | None = None
) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote, _SAMPLED, state)


def _resource() -> Resource:
    resource = Resource.create({SERVICE_VERSION: __version__, PROCESS_PID: os.getpid()})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # none is set
        resource = resource.merge(Resource({SERVICE_NAME: "mnist-serve"}))
    return resource


class _Session(requests.Session):
    """Tells `note` why a request fails; of some failures, OpenTelemetry logs no cause."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note
        self.hooks["response"].append(_examined)

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        try:
            response = super().request(*arguments, **options)
        except Exception as error:
            self._note(str(error))
            raise
        if not response.ok:
            self._note(f"the collector answers {response.status_code} {response.reason}")
        return response


def _session(note: Callable[[str], None]) -> requests.Session | None:
    """What the exporter sends with; None leaves it to the variables for a credential provider."""
    if any(os.environ.get(name) for name in _CREDENTIAL_PROVIDERS):
        return None
    return _Session(note)


def _examined(response: requests.Response, **_: object) -> requests.Response:
    """An answer of the collector, without its body if that is long. Raises TooManyRedirects.

    The exporter takes a redirect for a success. Following it would send the traces, and the
    headers with the credentials for the collector, to wherever it points. The exporter also reads
    the whole body, which may never end, though it needs the status and the headers alone.
    """
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.TooManyRedirects(
            f"the collector answers {response.status_code}, a redirect, which is not followed; set "
            "OTEL_EXPORTER_OTLP_ENDPOINT to where it points"
        )
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) <= _LONGEST_ANSWER:
        return response
    response.close()
    shortened = requests.Response()
    shortened.status_code, shortened.reason = response.status_code, response.reason
    shortened.headers, shortened.raw = response.headers, BytesIO()
    return shortened


def _milliseconds(variable: str, default: int) -> int:
    """The value of an environment variable of OpenTelemetry. Raises RuntimeError."""
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RuntimeError(f"{variable} is {excerpt(text)}; it is a whole number of milliseconds")
    return int(text or default)


class _Problem(logging.Handler):
    """Why the traces could not be exported: `text` is what was noted first since it was empty.

    The first attempt has all of its time, and says more than the last. What OpenTelemetry logs is
    kept from the log, where one line of ours says how the export goes: its own come with every
    attempt, and quote headers, those of callers and those with the credentials for the collector.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self)
        logger.propagate = False

    def note(self, text: str) -> None:
        """Note why an export fails, unless that is known."""
        if not self.text:
            text = text.rpartition("(Caused by ")[2]
            # requests quotes a header that it cannot send, and a URL with its password.
            text = _PASSWORD.sub("//***@", text.partition(" in header value")[0])
            self.text = text[:_LONGEST_PROBLEM]

    def emit(self, record: logging.LogRecord) -> None:
        """Note what OpenTelemetry logs."""
        if record.name == "opentelemetry.util.re":  # it quotes the variable
            self.note("one of _HEADERS is not NAME=VALUE")
        else:
            self.note(record.getMessage())
