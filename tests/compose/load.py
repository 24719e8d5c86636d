"""Clients that ask through Envoy without a pause, and count every request that fails."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.compose.engine import ROOT, say

_CLIENTS_EACH = 4
_PAUSE_S = 0.01  # the machine is small: some hundred requests a second are enough
_TIMEOUT_S = 30.0
_FEWEST_REQUESTS = 200  # a load that asked less has shown nothing
IMAGE = (ROOT / "docs" / "seven.png").read_bytes()


class Counted(NamedTuple):
    """What clients saw: how many answers, the failures, answers by model version, latencies."""

    requests: int
    failures: list[str]
    versions: Counter[str]
    worst_ms: float
    median_ms: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {len(self.failures)} failed; median "
            f"{self.median_ms:.1f} ms, slowest {self.worst_ms:.0f} ms"
        )


class Load:
    """While entered, clients over HTTP/1.1 and gRPC ask for predictions through Envoy."""

    def __init__(self, http_port: int, grpc_port: int) -> None:
        self._http, self._grpc = http_port, grpc_port
        self._done = threading.Event()
        self._seen: list[tuple[str, float]] = []
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=ask, daemon=True)
            for ask in [self._over_http] * _CLIENTS_EACH + [self._over_grpc] * _CLIENTS_EACH
        ]

    def __enter__(self) -> Load:
        # All gRPC clients share one connection: whoever balances must do so call by call.
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{self._grpc}", [("grpc.enable_retries", 0)]
        )
        self._stub: Any = digits_pb2_grpc.DigitClassifierStub(self._channel)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=2 * _TIMEOUT_S)
        self._channel.close()

    @property
    def answered(self) -> int:
        """Requests that were answered rightly so far."""
        return len(self._seen)

    def last_versions(self, count: int = 50) -> set[str]:
        """Model versions of the latest answers."""
        return {version for version, _ in self._seen[-count:]}

    def counted(self) -> Counted:
        """What has been seen; to be asked after the end."""
        took = [seconds * 1000 for _, seconds in self._seen] or [0.0]
        return Counted(
            len(self._seen) + len(self._failures),
            self._failures,
            Counter(version for version, _ in self._seen),
            max(took),
            statistics.median(took),
        )

    def _over_http(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_TIMEOUT_S)
        while not self._done.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/predict", IMAGE, {"content-type": "image/png"})
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    raise OSError(f"{response.status} {body[:200]!r}")
                answer = json.loads(body)
                self._check(answer["predictions"][0]["digit"])
                self._seen.append((answer["model_version"], time.monotonic() - began))
            except (OSError, http.client.HTTPException) as error:
                self._failures.append(f"HTTP: {type(error).__name__} {error}")
                connection.close()
            time.sleep(_PAUSE_S)

    def _over_grpc(self) -> None:
        request = digits_pb2.PredictRequest(image=IMAGE)
        while not self._done.is_set():
            began = time.monotonic()
            try:
                answer = self._stub.Predict(request, timeout=_TIMEOUT_S)
                self._check(answer.predictions[0].digit)
                self._seen.append((answer.model_version, time.monotonic() - began))
            except grpc.RpcError as error:
                self._failures.append(f"gRPC: {error.code()} {error.details()}")
            except OSError as error:
                self._failures.append(f"gRPC: {error}")
            time.sleep(_PAUSE_S)

    @staticmethod
    def _check(digit: int) -> None:
        if digit != 7:
            raise OSError(f"a seven was taken for a {digit}")


@contextmanager
def no_failures(http_port: int, grpc_port: int) -> Iterator[Load]:
    """Load for as long as the body lasts; raises AssertionError for any failed request."""
    with Load(http_port, grpc_port) as load:
        yield load
    counted = load.counted()
    say(f"Clients saw: {counted}.")
    assert counted.requests >= _FEWEST_REQUESTS, "The load was too small to show anything."
    assert not counted.failures, f"Failed: {counted.failures[:5]}"
