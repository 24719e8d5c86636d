"""The stack under test: its settings, its replicas, and requests to it through Envoy."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.compose.engine import Docker, say
from tests.compose.load import IMAGE


def _free_ports(count: int) -> list[int]:
    """Free ports below those that the kernel gives to clients: they stay free between the steps."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] * (port not in ports)
    return ports


HTTP_PORT, GRPC_PORT, HTTP2_PORT, _PROMETHEUS_PORT = _free_ports(4)
PROJECT = "mnist-test"

# The settings of .env. Training is short, since this tests the deployment.
SETTINGS = {
    "COMPOSE_PROJECT_NAME": PROJECT,
    "TAG": "test",
    "VERSION": "0.0.1",
    "REVISION": "test",
    "CREATED": "2026-01-01T00:00:00Z",
    "TRAIN_LOCK": "train-cpu",
    "TRAIN_OPTIONS": "--recipe book --optimizer adamw --epochs 1 --threads 1",
    "HTTP_PORT": str(HTTP_PORT),
    "GRPC_PORT": str(GRPC_PORT),
    "HTTP2_PORT": str(HTTP2_PORT),
    "PROMETHEUS_PORT": str(_PROMETHEUS_PORT),
}

# The image of the rolling update: the same sources under another version.
NEXT = {"TAG": "test-next", "VERSION": "0.0.2"}


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    """GET over HTTP/1.1."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def predict_http() -> dict[str, Any]:
    """One prediction over HTTP/1.1 through Envoy."""
    connection = http.client.HTTPConnection("127.0.0.1", HTTP_PORT, timeout=10)
    try:
        connection.request("POST", "/predict", IMAGE, {"content-type": "image/png"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{response.status}: {body[:200]!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def predict_everywhere() -> None:
    """Predict docs/seven.png over each of Envoy's ports. Raises AssertionError."""
    assert predict_http()["predictions"][0]["digit"] == 7
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        stub: Any = digits_pb2_grpc.DigitClassifierStub(channel)
        answer = stub.Predict(digits_pb2.PredictRequest(image=IMAGE), timeout=10)
        assert answer.predictions[0].digit == 7
    assert shutil.which("curl"), "curl is needed for requests over HTTP/2: apt-get install curl"
    done = subprocess.run(
        ["curl", "--silent", "--http2-prior-knowledge", "--data-binary", "@-", "--write-out",
         "\n%{http_version}", "-H", "content-type: image/png",
         f"http://127.0.0.1:{HTTP2_PORT}/predict"],
        input=IMAGE, capture_output=True, check=True,
    )  # fmt: skip
    body, version = done.stdout.rsplit(b"\n", 1)
    assert json.loads(body)["predictions"][0]["digit"] == 7
    assert version == b"2"


def first_prediction_after(begin: Callable[[], object], within: float = 90.0) -> float:
    """Call `begin`, which starts the stack; the seconds until its first prediction."""
    began = time.monotonic()
    begin()
    wait_until("a prediction through Envoy", lambda: bool(predict_http()), within)
    return time.monotonic() - began


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Poll until the condition holds; connection errors count as false. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {seconds:.0f} s for {what}; it did not happen.")
        time.sleep(0.1)


def replicas(docker: Docker) -> list[str]:
    """Ids of the running containers of `serve`."""
    return docker.compose("ps", "-q", "serve").split()


def address(docker: Docker, container: str) -> str:
    """A container's IP address on the stack's network; this machine can reach it."""
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", "--format", form, container)


def predictions_of(docker: Docker, container: str) -> dict[str, float]:
    """Predictions of one replica by transport, without refused ones, from its metrics."""
    _, text = get(8000, "/metrics", address(docker, container))
    counts = re.findall(
        r'mnist_request_seconds_count\{code="(?:200|OK)",operation="predict",'
        r'transport="(\w+)"\} (\S+)',
        text.decode(),
    )
    return {transport: float(count) for transport, count in counts}


def envoy_sees(docker: Docker, count: int) -> bool:
    """Whether Envoy has `count` healthy replicas on both ports."""
    envoy = docker.compose("ps", "-q", "envoy")
    _, text = get(9902, "/stats/prometheus", address(docker, envoy))
    healthy = re.findall(
        r'envoy_cluster_membership_healthy\{envoy_cluster_name="serve_\w+"\} (\d+)', text.decode()
    )
    return healthy == [str(count)] * 2


def retries(docker: Docker) -> float:
    """Number of requests to `serve` that Envoy has retried."""
    envoy = docker.compose("ps", "-q", "envoy")
    _, text = get(9902, "/stats/prometheus", address(docker, envoy))
    counts = re.findall(
        r'envoy_cluster_upstream_rq_retry\{envoy_cluster_name="serve_\w+"\} (\d+)', text.decode()
    )
    return sum(float(count) for count in counts)


def scale(docker: Docker, count: int) -> None:
    """Run `serve` with `count` replicas, and wait until Envoy sends requests to all of them."""
    docker.compose(
        "up", "--detach", "--no-build", "--no-deps", "--no-recreate", "--scale", f"serve={count}",
        "serve", quiet=False,
    )  # fmt: skip
    wait_until(f"{count} healthy replicas in Envoy", lambda: envoy_sees(docker, count))
    say(f"Envoy has {count} healthy replicas.")
