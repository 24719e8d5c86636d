"""A collector of traces: OTLP over HTTP, as OpenTelemetry's exporter and Envoy's tracer send it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """A span; ids are hexadecimal, times nanoseconds, a link (trace id, span id)."""

    service: str
    trace_id: str
    id: str
    parent: str
    name: str
    kind: int
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    status: int
    state: str


class Collector:
    """A collector on a free port. `status`, `answer` and `location` are what it answers, while
    `hold` is set.

    `bodies` are what was sent, `headers` those of the latest request, `resource` its attributes.
    """

    def __init__(self) -> None:
        self.status, self.answer, self.location = 200, b"", ""
        self.hold = threading.Event()
        self.hold.set()
        self.requests = 0
        self.bodies: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.resource: dict[str, Any] = {}
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.body()
                collector.headers = {name.lower(): text for name, text in self.headers.items()}
                collector.requests += 1
                collector.hold.wait()
                if collector.status == 200:
                    collector.take(body)
                self.send_response(collector.status)
                self.send_header("content-length", str(len(collector.answer)))
                if collector.location:
                    self.send_header("location", collector.location)
                self.end_headers()
                self.wfile.write(collector.answer)

            def body(self) -> bytes:
                if length := self.headers["content-length"]:
                    return self.rfile.read(int(length))
                chunks = []  # Envoy's
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _values(part.resource.attributes)
            service = self.resource.get("service.name", "")
            for scope in part.scope_spans:
                self.spans += [
                    Span(
                        service,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.name,
                        span.kind,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        _values(span.attributes),
                        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        span.status.code,
                        span.trace_state,
                    )
                    for span in scope.spans
                ]

    def of(self, trace_id: str) -> list[Span]:
        """The spans of a trace."""
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"The condition fails; the spans are {[s.name for s in self.spans]}")
            time.sleep(0.02)

    def wait_for(self, *names: str, trace_id: str = "") -> None:
        """Wait for spans of these names, of a trace if one is given."""
        self.wait_until(
            lambda: (
                set(names)
                <= {span.name for span in list(self.spans) if trace_id in ("", span.trace_id)}
            )
        )


def _values(attributes: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }
