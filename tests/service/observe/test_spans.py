from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from service.access.keys import new_key
from service.core.trace import Batch, Trace
from service.observe.metrics import exposition
from service.observe.spans import SpanExporter
from service.observe.traces import Traces
from tests.collector import Collector

MINE = "mine"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


Start = Callable[..., tuple[Traces, SpanExporter]]


@pytest.fixture
def start(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function that starts an exporter to the collector."""
    exporters: list[SpanExporter] = []

    def start(endpoint: str = "", **limits: int) -> tuple[Traces, SpanExporter]:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint or collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        traces = Traces(share=1, per_second=100, **limits)
        exporters.append(SpanExporter(traces))
        return traces, exporters[-1]

    yield start
    for exporter in exporters:
        exporter.stop(60)
    logging.getLogger("opentelemetry").propagate = True


def finished(code: str = "200", method: str = "POST", route: str = "/predict") -> Trace:
    """A trace of a request that ran in a batch with another one."""
    trace = Trace(0xABC, 0xDEF, "a=b")
    trace.handle(method, route, "the-id")
    began = trace.began
    trace.handled = began + 0.001
    trace.add(began + 0.002)
    batch = Batch(("mnist", "2"), requests=2, rows=3, error="")
    batch.times(began + 0.003, began + 0.004, began + 0.006, began + 0.007)
    trace.add(batch)
    trace.ended, trace.code = began + 0.008, code
    return trace


def spans(exporter: SpanExporter, *traces: Trace) -> dict[str, ReadableSpan]:
    return {span.name: span for trace in traces for span in exporter.spans(trace)}


def times(span: ReadableSpan, trace: Trace) -> tuple[float, float]:
    """Milliseconds from the arrival of the request."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - trace.wall_ns) / 1e6, (span.end_time - trace.wall_ns) / 1e6


def test_a_request_is_a_tree_of_spans(start: Start) -> None:
    trace = finished()
    made = spans(start()[1], trace)
    assert {name: times(span, trace) for name, span in made.items()} == {
        "POST /predict": (0, 8),
        "receive": (0, 1),
        "decode": (1, 2),
        "queue": (2, 3),
        "run": (3, 7),
        "batch": (3, 7),
        "encode": (7, 8),
    }
    server = made["POST /predict"]
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id, server.parent.is_remote) == (
        0xABC,
        0xDEF,
        True,
    )
    assert server.context.trace_state["a"] == "b"
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "mnist.request_id": "the-id",
        "mnist.model": "mnist",
        "mnist.model_version": "2",
    }
    for name in ("receive", "decode", "queue", "run", "encode"):
        child = made[name]
        assert child.parent == server.context, name
        assert child.kind is SpanKind.INTERNAL
    assert len({span.context.span_id for span in made.values()}) == len(made)


def test_a_batch_and_its_members_link_to_each_other(start: Start) -> None:
    one, other = finished(), finished(route="/read")
    (_, batch) = one.steps
    assert isinstance(batch, Batch)
    other.steps[1] = batch
    batch.members.append((other.trace_id, other.step_id(2)))
    exporter = start()[1]
    made = [span for trace in (one, other) for span in exporter.spans(trace)]
    (of_batch,) = (span for span in made if span.name == "batch")  # once
    runs = [span for span in made if span.name == "run"]
    assert of_batch.parent is None
    assert [link.context.span_id for link in of_batch.links] == [r.context.span_id for r in runs]
    assert [[link.context for link in run.links] for run in runs] == [[of_batch.context]] * 2
    assert (of_batch.attributes or {})["mnist.requests"] == 2
    assert (of_batch.attributes or {})["mnist.images"] == 3


@pytest.mark.parametrize(
    ("method", "code", "is_error"),
    [
        ("POST", "200", False),
        ("POST", "404", False),  # the caller's error is no error of this span
        ("POST", "499", False),
        ("POST", "503", True),
        ("", "OK", False),
        ("", "INVALID_ARGUMENT", False),
        ("", "CANCELLED", False),
        ("", "UNAVAILABLE", True),
    ],
)
def test_the_status_follows_the_conventions(
    start: Start, method: str, code: str, is_error: bool
) -> None:
    trace = finished(code, method, "/x" if method else "a.B/C")
    server = next(start()[1].spans(trace))
    assert server.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert server.status.description is None
    assert (server.attributes or {}).get("error.type") == (code if is_error else None)


def test_a_call_has_the_attributes_of_rpc(start: Start) -> None:
    server = next(start()[1].spans(finished("OK", "", "digits.v1.DigitClassifier/Predict")))
    assert server.name == "digits.v1.DigitClassifier/Predict"
    attributes = dict(server.attributes or {})
    assert attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.method"] == server.name
    assert attributes["rpc.response.status_code"] == "OK"


@pytest.mark.parametrize(
    ("method", "route", "name"),
    [
        ("GET", "/v2/models/<model>", "GET /v2/models/{model}"),
        ("GET", "", "GET"),  # no route
        (MINE, "", "_OTHER"),
        ("get", "", "_OTHER"),
    ],
)
def test_the_names_of_spans_are_few(start: Start, method: str, route: str, name: str) -> None:
    server = next(start()[1].spans(finished("404", method, route)))
    assert server.name == name
    assert MINE not in str(dict(server.attributes or {}))


def test_a_request_that_never_ran_was_in_the_queue_to_its_end(start: Start) -> None:
    trace = finished("503")
    trace.steps.pop()
    made = spans(start()[1], trace)
    assert set(made) == {"POST /predict", "receive", "decode", "queue"}
    assert times(made["queue"], trace) == (2, 8)
    assert made["queue"].status.status_code is StatusCode.ERROR


def test_a_run_that_failed_says_what_was_raised(start: Start) -> None:
    trace = finished("500")
    (_, batch) = trace.steps
    assert isinstance(batch, Batch)
    batch.error = "RuntimeError"
    made = spans(start()[1], trace)
    for name in ("run", "batch"):
        assert made[name].status.status_code is StatusCode.ERROR
        assert (made[name].attributes or {})["error.type"] == "RuntimeError"


@pytest.mark.parametrize("state", ["no state", "a=b,a=c", "a=b," * 200, "A=b", "a=\n"])
def test_a_malformed_tracestate_is_dropped_and_not_logged(
    start: Start, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start()[1]
    trace = finished()
    trace.state = state
    server = next(exporter.spans(trace))
    assert len(server.context.trace_state) == 0
    assert server.parent is not None
    assert caplog.text == ""


def test_traces_are_exported_with_what_the_variables_say(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    traces, _ = start()
    traces.end(finished(), "200")
    collector.wait_for("encode")
    assert collector.resource["service.name"] == "mnist-serve"
    assert collector.resource["deployment.environment.name"] == "test"
    assert collector.headers["authorization"] == "Bearer x"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    traces, _ = start()
    traces.end(finished(), "200")
    collector.wait_until(lambda: collector.resource["service.name"] == "digits")


def test_what_has_ended_is_exported_at_the_stop(start: Start, collector: Collector) -> None:
    traces, exporter = start()
    for _ in range(200):
        traces.end(finished(), "200")
    exporter.stop(60)
    assert sum(span.name == "POST /predict" for span in collector.spans) == 200


def dropped(reason: str) -> float:
    for line in exposition().decode().splitlines():
        if line.startswith(f'mnist_traces_dropped_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    return 0.0


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("status", [400, 500, 200])
def test_a_collector_that_refuses_is_one_line_and_a_number(
    start: Start, collector: Collector, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Or answers garbage: any answer of 2xx is taken for a success."""
    caplog.set_level(logging.INFO)
    collector.status, collector.answer = status, b"\xff<garbage>\0" * 100
    before = dropped("export")
    traces, exporter = start()
    for number in range(3):
        traces.end(finished(), "200")
        collector.wait_until(lambda number=number: collector.requests > number)  # type: ignore[misc]
    exporter.stop(60)
    if status == 200:
        assert dropped("export") == before
        assert lines(caplog) == []
        return
    collector.wait_until(lambda: dropped("export") == before + 3)
    (line,) = lines(caplog)
    assert "Traces cannot be exported" in line
    assert str(status) in line


def test_a_collector_that_comes_back_is_noticed(
    start: Start, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    collector.status = 400
    traces, _ = start()
    traces.end(finished(), "200")
    collector.wait_until(lambda: len(lines(caplog)) == 1)
    collector.status = 200
    traces.end(finished(), "200")
    collector.wait_until(lambda: len(lines(caplog)) == 2)
    assert lines(caplog)[1] == "Traces are exported again."


def test_nothing_waits_for_a_collector_that_does_not_answer(
    start: Start, collector: Collector
) -> None:
    collector.hold.clear()
    before = dropped("queue")
    traces, exporter = start(most_ended=10)
    traces.end(finished(), "200")
    collector.wait_until(lambda: collector.requests == 1)  # and it does not answer
    for _ in range(30):
        traces.end(finished(), "200")
    assert (len(traces.ended), traces.lost) == (10, 20)
    exporter.stop(0)  # returns
    collector.hold.set()
    collector.wait_until(lambda: dropped("queue") == before + 20)


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_collector_that_is_not_there_is_named(
    start: Start,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stops_early: bool,
) -> None:
    """Also if the exporter stops while OpenTelemetry waits to try again."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60" if stops_early else "0.5")
    traces, exporter = start("http://127.0.0.1:1")
    traces.end(finished(), "200")
    if stops_early:
        collector.wait_until(lambda: "refused" in exporter._problem.text)
        exporter.stop(0)
    collector.wait_until(lambda: any("cannot be exported" in line for line in lines(caplog)))
    (line,) = (line for line in lines(caplog) if "cannot be exported" in line)
    assert "refused" in line


def test_a_redirect_is_named_and_not_followed(
    start: Start, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector() as other:
        for status in (301, 307, 308):
            collector.status, collector.location = status, f"{other.url}/v1/traces"
            before = len(lines(caplog))
            traces, _ = start()
            traces.end(finished(), "200")
            collector.wait_until(lambda before=before: len(lines(caplog)) > before)  # type: ignore[misc]
            assert f"answers {status}, a redirect" in lines(caplog)[-1]
        assert other.requests == 0


class Endless(threading.Thread):
    """A collector whose answer has no end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0

    def run(self) -> None:
        connection = self._listener.accept()[0]
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(bytes(65536))
                self.sent += 65536


def test_an_answer_without_an_end_is_not_read(start: Start) -> None:
    endless = Endless()
    endless.start()
    traces, exporter = start(endless.url)
    traces.end(finished(), "200")
    endless.join(120)  # its connection is closed
    assert not endless.is_alive()
    assert endless.sent < 64 * 1024 * 1024
    exporter.stop(60)


def test_a_key_in_the_request_id_or_the_state_is_masked(start: Start) -> None:
    trace, key = finished(), new_key()
    trace.request_id, trace.state = key, f"vendor={key}"
    server = next(start()[1].spans(trace))
    assert (server.attributes or {})["mnist.request_id"] == "mnist_***"
    assert server.context.trace_state["vendor"] == "mnist_***"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HEADERS", "authorization Bearer secret", "_HEADERS is not NAME=VALUE"),
        ("HEADERS", "a=b,secret", "_HEADERS is not NAME=VALUE"),
        ("TIMEOUT", "soon", "Invalid timeout value 'soon'"),
        ("COMPRESSION", "best", "Unsupported compression type: best"),
    ],
)
def test_a_variable_of_the_exporter_that_cannot_be_used_is_named_without_credentials(
    name: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.raises(RuntimeError, match="OTEL_EXPORTER_OTLP_") as caught:
        SpanExporter(Traces(share=1, per_second=1))
    logging.getLogger("opentelemetry").propagate = True
    assert says in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("headers", "endpoint"),
    [
        ("authorization=Bearer%0Asecret", ""),
        ("", "http://me:secret@127.0.0.1:port"),
        ("", "http://me:secret@[::1"),
        ("", "ftp://me:secret@127.0.0.1"),
    ],
)
def test_credentials_that_cannot_be_sent_are_not_in_the_log(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, headers: str, endpoint: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    traces, _ = start(endpoint)
    traces.end(finished(), "200")
    collector.wait_until(lambda: any("cannot be exported" in line for line in lines(caplog)))
    assert "secret" not in caplog.text


@pytest.mark.parametrize("value", ["soon", "-1", "1e3", "9" * 10, "\u0661"])
def test_a_variable_that_cannot_be_used_is_named(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", value)
    with pytest.raises(RuntimeError, match="OTEL_BSP_SCHEDULE_DELAY is "):
        SpanExporter(Traces(share=1, per_second=1))
