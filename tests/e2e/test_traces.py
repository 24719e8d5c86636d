"""The traces of requests that come through Envoy, as a collector receives them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from tests.collector import Collector, Span
from tests.conftest import ROOT, Mnist, Server, free_ports, starting
from tests.e2e.following import DOCS, blocks, commands
from tests.e2e.test_envoy import ENVOY, configuration, connect, request

STEPS = ["receive", "decode", "queue", "run", "encode"]
SERVER, INTERNAL = 2, 1  # kinds
ERROR = 2
MESSAGES = 5


class Site(NamedTuple):
    """A server behind Envoy, and the collector to which both send their spans."""

    server: Server
    http: str
    grpc: str
    collector: Collector


def envoy_configuration(server: Server, collector: Collector) -> tuple[dict[str, Any], list[int]]:
    """The shipped listeners http and grpc, with their tracing, to a collector over HTTP."""
    ports = free_ports(2)
    parts = [
        configuration(server, port, transport)["static_resources"]
        for port, transport in zip(ports, ("http", "grpc"), strict=True)
    ]
    listeners = [listener for part in parts for listener in part["listeners"]]
    for listener in listeners:
        listener["filter_chains"][0]["filters"][0]["typed_config"]["tracing"] = {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "service_name": "mnist-envoy",
                    "http_service": {
                        "http_uri": {
                            "uri": f"{collector.url}/v1/traces",
                            "cluster": "traces",
                            "timeout": "60s",
                        }
                    },
                },
            }
        }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": collector.port}}
    traces = {
        "name": "traces",
        "type": "STATIC",
        "connect_timeout": "60s",
        "load_assignment": {
            "cluster_name": "traces",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    clusters = [*(cluster for part in parts for cluster in part["clusters"]), traces]
    runtime = {"tracing.random_sampling": 10_000, "tracing.opentelemetry.flush_interval_ms": 100}
    return {
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
    }, ports


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with (
        Collector() as collector,
        pytest.MonkeyPatch.context() as patch,
        starting(tmp_path_factory) as start,
    ):
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        server = start(
            traces=True, traces_sample=0, log_requests="all", fast_grpc=request.param,
            max_queue_delay=100,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("envoy")
        file, log = folder / "envoy.yaml", folder / "log"
        config, ports = envoy_configuration(server, collector)
        file.write_text(yaml.safe_dump(config))
        command = [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        http, rpc = (f"127.0.0.1:{port}" for port in ports)
        try:
            with connect(rpc) as channel:
                grpc.channel_ready_future(channel).result(timeout=120)
            yield Site(server, http, rpc, collector)
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(timeout=60)


def caller() -> tuple[str, str, str]:
    """The header traceparent of a caller, its trace id and its span."""
    trace_id, span_id = os.urandom(16).hex(), os.urandom(8).hex()
    return f"00-{trace_id}-{span_id}-01", trace_id, span_id


def only(spans: list[Span], name: str) -> Span:
    (span,) = [span for span in spans if span.name == name]
    return span


def check_steps(site: Site, parent: Span, steps: list[str]) -> None:
    """That these are its children, in this order and without gaps, and its run has its batch."""
    spans = site.collector.of(parent.trace_id)
    children = [span for span in spans if span.parent == parent.id and span.name != "message"]
    assert sorted(span.name for span in children) == sorted(steps)
    by_name = {span.name: span for span in children}
    times = [(by_name[step].start, by_name[step].end) for step in steps]
    assert times == sorted(times)
    assert parent.start <= times[0][0]
    assert times[-1][1] <= parent.end
    assert all(span.kind == INTERNAL for span in children)
    run = by_name["run"]
    (link,) = run.links
    site.collector.wait_until(lambda: bool(site.collector.of(link[0])))
    (batch,) = site.collector.of(link[0])
    assert (batch.name, batch.id, batch.parent) == ("batch", link[1], "")
    assert (run.trace_id, run.id) in batch.links


def behind_envoy(site: Site, trace_id: str, span_id: str, name: str) -> Span:
    """The server's span, whose parent is Envoy's, whose parent is the caller's."""
    site.collector.wait_for(name, "ingress", "encode", trace_id=trace_id)
    spans = site.collector.of(trace_id)
    ingress, server = only(spans, "ingress"), only(spans, name)
    assert (ingress.service, ingress.parent) == ("mnist-envoy", span_id)
    assert (server.service, server.parent, server.kind) == ("mnist-serve", ingress.id, SERVER)
    assert server.state == "vendor=x"
    return server


def post(address: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    url = f"http://{address}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:
        return int(answer.status)


def test_a_request_over_http(site: Site) -> None:
    parent, trace_id, span_id = caller()
    headers = {"traceparent": parent, "tracestate": "vendor=x", "content-type": "image/png"}
    assert post(site.http, "/predict", (ROOT / "docs" / "seven.png").read_bytes(), headers) == 200
    server = behind_envoy(site, trace_id, span_id, "POST /predict")
    check_steps(site, server, STEPS)
    assert server.attributes["http.response.status_code"] == 200
    (line,) = logged(site, trace_id)
    assert line["request_id"] == server.attributes["mnist.request_id"]


def logged(site: Site, trace_id: str) -> list[dict[str, Any]]:
    """The log lines of a trace."""
    lines = [json.loads(line) for line in site.server.log.read_text().splitlines()]
    return [line for line in lines if line.get("trace_id") == trace_id]


def test_a_call_over_grpc(site: Site, mnist: Mnist) -> None:
    parent, trace_id, span_id = caller()
    with connect(site.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("traceparent", parent), ("tracestate", "vendor=x")]
        stub.ModelInfer(request(mnist), metadata=metadata, timeout=120)
    name = "inference.GRPCInferenceService/ModelInfer"
    server = behind_envoy(site, trace_id, span_id, name)
    check_steps(site, server, STEPS)
    assert server.attributes["rpc.response.status_code"] == "OK"
    (line,) = logged(site, trace_id)
    assert line["request_id"] == server.attributes["mnist.request_id"]


def test_a_stream_and_its_messages(site: Site, mnist: Mnist) -> None:
    """The messages wait for each other (max_queue_delay): they are one batch."""
    parent, trace_id, span_id = caller()
    with connect(site.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("traceparent", parent), ("tracestate", "vendor=x")]
        messages = [*([request(mnist)] * MESSAGES), request(mnist, name="wrong")]
        answers = list(stub.ModelStreamInfer(iter(messages), metadata=metadata, timeout=120))
    assert [bool(answer.error_message) for answer in answers] == [False] * MESSAGES + [True]
    stream = behind_envoy(
        site, trace_id, span_id, "inference.GRPCInferenceService/ModelStreamInfer"
    )
    spans = site.collector.of(trace_id)
    messages_of = [span for span in spans if span.name == "message"]
    assert [span.parent for span in messages_of] == [stream.id] * (MESSAGES + 1)
    codes = [span.attributes["rpc.response.status_code"] for span in messages_of]
    assert sorted(codes) == ["INVALID_ARGUMENT", *["OK"] * MESSAGES]
    runs: set[tuple[str, str]] = set()
    for message in messages_of:
        if message.attributes["rpc.response.status_code"] == "OK":
            check_steps(site, message, STEPS[1:])
            runs |= {span.links[0] for span in spans if span.parent == message.id and span.links}
    batches = [span for trace, _ in runs for span in site.collector.of(trace)]
    assert sum(len(batch.links) for batch in batches) == MESSAGES
    assert sum(batch.attributes["mnist.images"] for batch in batches) == MESSAGES
    lines = logged(site, trace_id)
    assert sorted(line["code"] for line in lines) == sorted(codes)
    assert {line["request_id"] for line in lines} == {stream.attributes["mnist.request_id"]}


def test_what_callers_send_is_in_no_span_of_the_server(site: Site, mnist: Mnist) -> None:
    mark = "caller" + os.urandom(8).hex()
    parent, trace_id, _ = caller()
    headers = {
        "traceparent": parent,
        "tracestate": "vendor=x",
        "baggage": f"user={mark}",
        "authorization": f"Bearer {mark}",
        "x-api-key": mark,
        "user-agent": mark,
        "content-type": "application/json",
    }
    body = json.dumps({"image": mark}).encode()
    for path in (f"/predict?model={mark}", f"/v2/models/{mark}/infer", f"/{mark}"):
        with pytest.raises(urllib.error.HTTPError):
            post(site.server.http, path, body, headers)
    with connect(site.server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("traceparent", parent), ("baggage", mark), ("x-api-key", mark)]
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(inference.ModelInferRequest(model_name=mark), metadata=metadata)
    names = ["POST /predict", "POST /v2/models/{model}/infer", "POST"]
    site.collector.wait_for(*names, "inference.GRPCInferenceService/ModelInfer", trace_id=trace_id)
    ours = [span for span in site.collector.of(trace_id) if span.service == "mnist-serve"]
    assert mark not in str(ours)
    codes = {span.name: span.attributes.get("http.response.status_code") for span in ours}
    assert [codes[name] for name in names] == [404, 400, 404]
    assert all(span.status != ERROR for span in ours)  # the callers' errors


def test_callers_that_are_not_sampled_are_not_traced(site: Site, mnist: Mnist) -> None:
    parent, trace_id, _ = caller()
    body = mnist.images[0].tobytes()
    headers = {"content-type": "application/octet-stream"}
    for context in (parent[:-1] + "0", parent.upper(), parent + "-", "x" * 5000):
        assert post(site.server.http, "/predict", body, headers | {"traceparent": context}) == 200
    assert post(site.server.http, "/predict", body, headers) == 200
    _, last, _ = caller()
    headers["traceparent"] = f"00-{last}-{'1' * 16}-01"
    assert post(site.server.http, "/predict", body, headers) == 200
    site.collector.wait_for("encode", trace_id=last)
    assert site.collector.of(trace_id) == []


def test_the_metric_counts_traces(site: Site) -> None:
    site.collector.wait_until(
        lambda: bool(
            re.search(rb"mnist_traces_exported_total [1-9]", site.server.get("/metrics")[1])
        )
    )


@pytest.fixture
def start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Server]]:
    """A function that starts a server whose collector has this URL."""
    with starting(tmp_path_factory) as start:

        def begin(url: str, **settings: object) -> Server:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
            return start(traces=True, traces_sample=1, **settings)

        yield begin


def test_a_worker_that_stops_exports_what_it_has(start: Callable[..., Server]) -> None:
    """Although traces wait for 5 s by default; each of two workers has an exporter of its own."""
    with Collector() as collector:
        server = start(collector.url, workers=2)
        for _ in range(20):
            assert server.get("/v2/models/mnist")[0] == 200
        assert server.stop() == 0
        count = sum(span.name == "GET /v2/models/{model}" for span in collector.spans)
        assert count == 20


def test_a_collector_that_hangs_delays_neither_requests_nor_the_stop(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with Collector() as collector:
        collector.hold.clear()
        server = start(collector.url, stop_timeout=1)
        collector.wait_until(lambda: collector.requests > 0)
        for _ in range(50):
            assert server.get("/v2/models/mnist")[0] == 200
        # The exporter itself would wait for 10 s; the supervisor kills a worker after 6.
        assert server.stop() == 0
    assert "Killing" not in server.log.read_text()


def test_without_the_extra_the_server_says_what_to_install(tmp_path: Path) -> None:
    """A folder in front of the others hides the installed package."""
    hidden = tmp_path / "opentelemetry"
    hidden.mkdir()
    (hidden / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "--traces", "true"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "mnist-serve: traces is true, but OpenTelemetry is not installed; install the extra for "
        "it: pip install 'mnist-service[traces]'.\n"
    )


PROFILES = [
    command
    for block in blocks(DOCS / "howto" / "traces.md")
    for command in commands(block)
    if command.startswith("py-spy") and " top " not in command  # which never ends
]


@pytest.mark.parametrize("command", PROFILES)
def test_a_worker_can_be_profiled(server: Server, tmp_path: Path, command: str) -> None:
    """The commands of the manual, for a shorter time.

    While requests arrive: of a worker that rests, py-spy has nothing to record.
    """
    (file,) = (file for file in distribution("py-spy").files or () if file.name == "py-spy")
    (worker,) = server.worker_pids()
    words = command.replace("30", "1").replace("PID", str(worker)).split()[1:]
    finished = threading.Event()

    def ask() -> None:
        while not finished.is_set():
            server.get("/v2/models/mnist")

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        try:
            done = subprocess.run(
                [Path(str(file.locate())).resolve(), *words],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            finished.set()
        asking.result()
    assert done.returncode == 0, done.stderr
    if "--output" in words:
        assert "<svg" in (tmp_path / "profile.svg").read_text()
    else:
        assert "Thread" in done.stdout
    assert server.is_ready()
