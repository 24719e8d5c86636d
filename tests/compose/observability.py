"""The profiles: a real Prometheus, every query of the dashboard and the alerts, Envoy's spans.

Grafana and Jaeger are not in Debian's packages. Prometheus answers the dashboard's queries
instead, and a receiver of 20 lines takes the spans over OTLP.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import yaml

from tests.compose import images, stack
from tests.compose.engine import ROOT, Docker, say

_PROMETHEUS = "prom/prometheus:v2.42.0"
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_RECEIVER = f"""
import grpc
from concurrent.futures import ThreadPoolExecutor

class Spans(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == {_METHOD!r}:
            return grpc.unary_unary_rpc_method_handler(self.export)

    def export(self, request, context):
        print("spans:", b"mnist-envoy" in request, len(request), flush=True)
        return b""

server = grpc.server(ThreadPoolExecutor(2), [Spans()])
server.add_insecure_port("0.0.0.0:4317")
server.start()
server.wait_for_termination()
"""


def check_prometheus(docker: Docker, *, online: bool) -> None:
    """Prometheus scrapes every replica and Envoy; all queries work and no alert fires."""
    if not online:
        images.make_base_images(docker, "prometheus")
    tool = ["run", "--rm", "--entrypoint", "/bin/promtool", "--workdir", "/rules"]
    tool += ["--volume", f"{ROOT}/deploy/prometheus/alerts.yml:/rules/alerts.yml:ro"]
    tool += ["--volume", f"{ROOT}/tests/compose/alerts_test.yml:/rules/alerts_test.yml:ro"]
    docker(*tool, _PROMETHEUS, "test", "rules", "alerts_test.yml")
    say("promtool: the alerts fire when they should, and at no other time.")
    up = ["--profile", "observability", "up", "--detach", "--no-build", "--no-deps"]
    docker.compose(*up, "prometheus", quiet=False)
    replicas = len(stack.replicas(docker))
    stack.wait_until(
        f"{replicas} replicas and Envoy in Prometheus",
        lambda: [value("sum(up)"), value("count(up)")] == [replicas + 1] * 2,
    )
    say(f"Prometheus scrapes {replicas} replicas and Envoy.")
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/mnist.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    # Rates need two scrapes. Queries for failures have no answer while nothing fails.
    stack.wait_until(
        "an answer to every query of the dashboard",
        lambda: all(_ask(query) or "!~" in query for query in queries),
    )
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        _ask(rule["expr"])
    firing = _ask('ALERTS{alertstate="firing"}')
    assert not firing, f"Alerts fire although the stack is healthy: {firing}"
    say(f"{len(queries)} queries of the dashboard have answers; no alert fires.")


def check_tracing(docker: Docker) -> None:
    """With TRACE_SAMPLING, Envoy sends spans over OTLP to the host `traces`."""
    receiver = f"{stack.PROJECT}-traces"
    docker(
        "run", "--detach", "--name", receiver, "--network", f"{stack.PROJECT}_default",
        "--network-alias", "traces", "--entrypoint", "python",
        f"mnist-serve:{stack.SETTINGS['TAG']}", "-c", _RECEIVER,
    )  # fmt: skip
    try:
        docker.environ["TRACE_SAMPLING"] = "10000"
        docker.compose("up", "--detach", "--no-build", "--no-deps", "envoy")
        stack.wait_until("a prediction", lambda: bool(stack.predict_http()))
        stack.wait_until(
            "spans",
            lambda: bool(stack.predict_http()) and "spans: True" in docker("logs", receiver),
        )
        say("Envoy sends spans.")
    finally:
        del docker.environ["TRACE_SAMPLING"]
        docker("rm", "--force", receiver)


def _ask(query: str) -> list[Any]:
    """Prometheus' answer to one query. Raises AssertionError if the query is invalid."""
    port = int(stack.SETTINGS["PROMETHEUS_PORT"])
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": query})
    status, body = stack.get(port, path)
    assert status == 200, f"{query}: {body[:300]!r}"
    result: list[Any] = json.loads(body)["data"]["result"]
    return result


def targets() -> set[tuple[str, str]]:
    """The job and health of each target that Prometheus scrapes now."""
    status, body = stack.get(int(stack.SETTINGS["PROMETHEUS_PORT"]), "/api/v1/targets?state=active")
    assert status == 200, body[:300]
    active = json.loads(body)["data"]["activeTargets"]
    return {(each["labels"]["job"], each["health"]) for each in active}


def value(query: str) -> float:
    """The first value of Prometheus' answer to a query; -1 if there is none."""
    answer = _ask(query)
    return float(answer[0]["value"][1]) if answer else -1.0
