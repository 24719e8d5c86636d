"""Clients that send requests through Envoy all the time, and count the failures."""

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
_PAUSE_S = 0.01  # a small machine: some hundred requests per second are enough
_TIMEOUT_S = 30.0
_FEWEST_REQUESTS = 200  # with fewer, a load proves nothing
IMAGE = (ROOT / "docs" / "seven.png").read_bytes()


class Report(NamedTuple):
    """What the clients saw. `versions` counts answers by model version."""

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
    """A context in which clients send predictions through Envoy, over HTTP/1.1 and gRPC."""

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
        # All gRPC clients share one connection, so Envoy must balance call by call.
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
        """Number of correct answers so far."""
        return len(self._seen)

    def last_versions(self, count: int = 50) -> set[str]:
        """Model versions of the latest `count` answers."""
        return {version for version, _ in self._seen[-count:]}

    def report(self) -> Report:
        """What the clients saw; call it after the end."""
        took = [seconds * 1000 for _, seconds in self._seen] or [0.0]
        return Report(
            requests=len(self._seen) + len(self._failures),
            failures=self._failures,
            versions=Counter(version for version, _ in self._seen),
            worst_ms=max(took),
            median_ms=statistics.median(took),
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
            raise OSError(f"the model took a seven for a {digit}")


@contextmanager
def no_failures(http_port: int, grpc_port: int) -> Iterator[Load]:
    """Keep up the load while the body runs. Raises AssertionError if a request fails."""
    with Load(http_port, grpc_port) as load:
        yield load
    report = load.report()
    say(f"Clients saw: {report}.")
    assert report.requests >= _FEWEST_REQUESTS, "The load was too small to prove anything."
    assert not report.failures, f"Failed: {report.failures[:5]}"
