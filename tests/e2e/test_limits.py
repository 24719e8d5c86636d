"""One caller floods the server and is refused; another is not harmed. Over HTTP and both fronts.

Callers are keys, addresses of this machine, and addresses that a trusted proxy names. The limits
fill up so slowly that no test depends on time, and no test uses the callers of another.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from service.access.keys import SCOPES, Key, KeysFile, digest_of, new_key
from tests.conftest import ROOT, Server
from tests.e2e.test_envoy import running_envoy

BURST, IMAGES = 6, 10
SLOW = 0.001  # per second
OCTETS = {"content-type": "application/octet-stream"}
Headers = dict[str, str]


class Limited:
    """A server with limits, and callers that have sent nothing yet."""

    def __init__(self, server: Server, keys: list[str]) -> None:
        self.server = server
        self._keys = iter(keys)
        self._numbers = count(1)

    def key(self) -> Headers:
        """The headers of a new key."""
        return {"authorization": f"Bearer {next(self._keys)}"}

    def forwarded(self) -> Headers:
        """The headers of a new address, as a proxy adds them."""
        return {"x-forwarded-for": f"192.0.2.1, 10.0.{next(self._numbers)}.1"}

    def address(self) -> str:
        """A new address of this machine."""
        return f"127.0.1.{next(self._numbers)}"

    def predict(
        self, headers: Headers, images: int = 1, source: str = "127.0.0.1", path: str = "/predict"
    ) -> tuple[int, Headers, Any]:
        """The status, the headers and the body for a prediction, asked for from an address."""
        at = (source, 0)
        connection = http.client.HTTPConnection(self.server.http, source_address=at, timeout=120)
        method, body = ("POST", bytes(784 * images)) if path == "/predict" else ("GET", None)
        connection.request(method, path, body, {**OCTETS, **headers})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), json.loads(content)

    def statuses(self, times: int, *arguments: Any, **keywords: Any) -> list[int]:
        return [self.predict(*arguments, **keywords)[0] for _ in range(times)]

    def infer(self, headers: Headers, images: int = 1) -> grpc.RpcError | None:
        """Infer over gRPC; returns the error."""
        with grpc.insecure_channel(self.server.grpc) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            try:
                stub.ModelInfer(message(images), metadata=tuple(headers.items()), timeout=120)
            except grpc.RpcError as error:
                return error
        return None

    def codes(self, times: int, *arguments: Any) -> list[str]:
        errors = [self.infer(*arguments) for _ in range(times)]
        return ["OK" if error is None else error.code().name for error in errors]


def message(images: int = 1) -> Any:
    request = pb.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[images, 28, 28])
    request.raw_input_contents.append(bytes(784 * images))
    return request


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def limited(
    request: pytest.FixtureRequest,
    start_server: Callable[..., Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Limited:
    keys = [new_key() for _ in range(12)]
    file = tmp_path_factory.mktemp("keys") / "keys"
    scopes = frozenset(SCOPES)
    KeysFile(file).change(
        lambda _: [Key(f"k{i}", scopes, None, digest_of(key)) for i, key in enumerate(keys)]
    )
    server = start_server(
        fast_grpc=request.param,
        keys_file=file,
        anonymous_scopes="predict,read,metrics",
        trusted_proxies="127.0.0.1",
        max_requests_per_second=SLOW,
        request_burst=BURST,
        max_images_per_second=SLOW,
        image_burst=IMAGES,
    )
    return Limited(server, keys)


def envoy_with_limits() -> str:
    """deploy/envoy/envoy.yaml with its limits switched on, and filled up as slowly."""
    shipped = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    text = re.sub(r"^( +)#  ", r"\1", shipped, flags=re.MULTILINE)
    bucket = "max_tokens: 100, tokens_per_fill: 50, fill_interval: 1s"
    assert bucket in text
    return text.replace(bucket, f"max_tokens: {BURST}, tokens_per_fill: 1, fill_interval: 3600s")


REFUSED_REQUESTS = [200] * BURST + [429] * 3
REFUSED_CALLS = ["OK"] * BURST + ["RESOURCE_EXHAUSTED"] * 3


def test_a_key_that_floods_is_refused_and_another_is_not(limited: Limited) -> None:
    flood, other = limited.key(), limited.key()
    assert limited.statuses(BURST + 3, flood) == REFUSED_REQUESTS
    assert limited.statuses(BURST, other) == [200] * BURST


def test_an_address_that_floods_is_refused_and_another_is_not(limited: Limited) -> None:
    flood, other = limited.address(), limited.address()
    assert limited.statuses(BURST + 3, {}, source=flood) == REFUSED_REQUESTS
    assert limited.statuses(BURST, {}, source=other) == [200] * BURST
    proxied, other_proxied = limited.forwarded(), limited.forwarded()
    assert limited.statuses(BURST + 3, proxied) == REFUSED_REQUESTS
    assert limited.statuses(BURST, other_proxied) == [200] * BURST


def test_no_header_makes_another_caller_of_an_address(limited: Limited) -> None:
    flood = limited.address()
    assert limited.statuses(BURST, {}, source=flood) == [200] * BURST
    pretended = [limited.predict(limited.forwarded(), source=flood)[0] for _ in range(3)]
    assert pretended == [429] * 3


@pytest.mark.parametrize("kind", ["key", "forwarded"])
def test_a_caller_that_floods_over_grpc_is_refused_and_another_is_not(
    limited: Limited, kind: str
) -> None:
    flood, other = getattr(limited, kind)(), getattr(limited, kind)()
    assert limited.codes(BURST + 3, flood) == REFUSED_CALLS
    assert limited.codes(BURST, other) == ["OK"] * BURST


def test_both_transports_count_together(limited: Limited) -> None:
    caller = limited.key()
    assert limited.statuses(BURST - 1, caller) == [200] * (BURST - 1)
    assert limited.codes(2, caller) == ["OK", "RESOURCE_EXHAUSTED"]
    assert limited.statuses(1, caller) == [429]


def test_a_refusal_says_when_to_try_again(limited: Limited) -> None:
    caller = limited.key()
    limited.statuses(BURST, caller)
    status, headers, body = limited.predict(caller)
    assert (status, "max_requests_per_second" in body["error"]) == (429, True)
    assert 1 <= int(headers["retry-after"]) <= 1 / SLOW
    error = limited.infer(caller)
    assert isinstance(error, grpc.Call)
    assert "max_requests_per_second" in (error.details() or "")
    (pushback,) = (
        value for name, value in error.trailing_metadata() or () if name == "grpc-retry-pushback-ms"
    )
    assert 1000 <= int(pushback) <= 1000 / SLOW


def test_images_are_limited_apart_from_requests(limited: Limited) -> None:
    flood, other = limited.forwarded(), limited.forwarded()
    assert limited.statuses(3, flood, IMAGES - 1) == [200, 429, 429]
    assert limited.codes(2, flood) == ["OK", "RESOURCE_EXHAUSTED"]
    assert limited.statuses(1, other, IMAGES) == [200]


def test_more_images_than_the_burst_are_refused_for_good(limited: Limited) -> None:
    caller = limited.forwarded()
    status, headers, body = limited.predict(caller, IMAGES + 1)
    assert (status, "image_burst" in body["error"]) == (413, True)
    assert "retry-after" not in headers
    error = limited.infer(caller, IMAGES + 1)
    assert isinstance(error, grpc.Call)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert limited.statuses(1, caller, IMAGES) == [200]


def test_the_messages_of_a_stream_count_one_by_one(limited: Limited) -> None:
    caller, other = limited.forwarded(), limited.forwarded()
    with grpc.insecure_channel(limited.server.grpc) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for each, refused in ((caller, 2), (other, 0)):
            messages = [message() for _ in range(BURST + refused)]
            stream = stub.ModelStreamInfer(
                iter(messages), metadata=tuple(each.items()), timeout=120
            )
            errors = [answer.error_message for answer in stream]
            assert errors[:BURST] == [""] * BURST
            assert len(errors) == BURST + refused
            assert all("max_requests_per_second" in error for error in errors[BURST:])


def test_health_is_not_limited(limited: Limited) -> None:
    flood = limited.address()
    limited.statuses(BURST + 1, {}, source=flood)
    for path in ("/v2/health/ready", "/v2/health/live"):
        health = limited.statuses(2 * BURST, {}, source=flood, path=path)
        assert health == [200] * (2 * BURST)
    assert limited.statuses(1, {}, source=flood, path="/v2/models/mnist") == [429]
    with grpc.insecure_channel(limited.server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert [check(b"", timeout=120) for _ in range(2 * BURST)] == [b"\x08\x01"] * (2 * BURST)


def test_refusals_are_counted(limited: Limited) -> None:
    caller = limited.forwarded()
    refused = limited.statuses(BURST + 60, caller).count(429)
    assert refused == 60
    server = limited.server

    def shows() -> bool:
        # Metrics are flushed twice a second.
        lines = server.request("GET", "/metrics", headers=limited.forwarded())[1].decode()
        (counted,) = (
            float(line.split()[-1])
            for line in lines.splitlines()
            if line.startswith('mnist_limited_requests_total{limit="requests"}')
        )
        return counted >= refused

    server.wait_until(shows)


def get(address: str, path: str, source: str) -> tuple[int, str | None]:
    """The status and Retry-After of a request from an address."""
    connection = http.client.HTTPConnection(address, source_address=(source, 0), timeout=120)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.getheader("retry-after")


def answers(address: str) -> bool:
    try:
        return get(address, "/v2/health/ready", "127.0.0.1")[0] == 200
    except OSError:
        return False


def test_envoy_limits_each_address_for_all_servers_together(server: Server, tmp_path: Path) -> None:
    with running_envoy(server, tmp_path, "http", envoy_with_limits()) as address:
        server.wait_until(lambda: answers(address))
        flood = [get(address, "/v2/models/mnist", "127.0.0.2") for _ in range(BURST + 3)]
        assert flood == [(200, None)] * BURST + [(429, "1")] * 3
        other = [get(address, "/v2/models/mnist", "127.0.0.3") for _ in range(BURST)]
        assert other == [(200, None)] * BURST
        health = [get(address, "/v2/health/ready", "127.0.0.2") for _ in range(2 * BURST)]
        assert health == [(200, None)] * (2 * BURST)


def test_envoy_limits_grpc_as_well(server: Server, tmp_path: Path) -> None:
    with (
        running_envoy(server, tmp_path, "grpc", envoy_with_limits()) as address,
        grpc.insecure_channel(address) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", wait_for_ready=True, timeout=60) == b"\x08\x01"
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        codes = []
        for _ in range(BURST + 3):
            try:
                stub.ModelInfer(message(), timeout=120)
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
        assert codes == REFUSED_CALLS
        assert [check(b"", timeout=60) for _ in range(2 * BURST)] == [b"\x08\x01"] * (2 * BURST)
