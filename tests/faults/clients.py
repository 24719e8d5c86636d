"""Well-behaved clients: they check every answer and repeat a request that got none.

A client repeats a request on a new connection after an error of the connection, a timeout, or a
status that says "later", as a good client does. Any other error, an answer that is wrong, and a
request without an answer within `PATIENCE_S` are problems.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
import numpy as np

from benchmarks.wire_formats import GRPC_PATH, WIRES
from tests.conftest import read_mnist

PATIENCE_S = 180.0  # for one request with all its repetitions; generous: faults may overlap
ATTEMPT_S = 10.0
TOLERANCE = 1e-4
_IMAGES = 64  # of MNIST's test set
_PAUSE_S = 0.02  # between two requests of a client
_LATER = {429, 503}
_LATER_GRPC = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Again(Exception):
    """The request has no answer and may be repeated; the message says why."""


class Problem(Exception):
    """The server broke a promise; the message says which."""


class Record:
    """What the clients saw, from all threads."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.problems: list[str] = []
        self.longest_s = 0.0
        self._lock = threading.Lock()

    def answered(self, client: str, seconds: float) -> None:
        with self._lock:
            self.answers[client] += 1
            self.longest_s = max(self.longest_s, seconds)

    def repeats(self, client: str, reason: str) -> None:
        with self._lock:
            self.repeated[f"{client}: {reason}"] += 1

    def problem(self, text: str) -> None:
        with self._lock:
            self.problems.append(text)


class Images:
    """Images of the test set and their known probabilities."""

    def __init__(self, probabilities: np.ndarray) -> None:
        """`probabilities` [N,10] of the first images, from ONNX Runtime on each alone."""
        self._images = read_mnist().images[: len(probabilities)]
        self._probabilities = probabilities

    def choose(self, chance: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """One to five images [N,28,28] and their probabilities [N,10]."""
        chosen = [chance.randrange(len(self._images)) for _ in range(chance.randint(1, 5))]
        return self._images[chosen], self._probabilities[chosen]


class HttpClient:
    """Raw pixels to /predict and binary tensors to infer, on a kept connection."""

    name = "http"

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, images: np.ndarray, chance: random.Random) -> np.ndarray:
        """The probabilities [N,10]. Raises Again, Problem."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, ATTEMPT_S)
        wire, path = chance.choice([("raw", "/predict"), ("binary", "/v2/models/mnist/infer")])
        body = WIRES[wire].encode(images)
        try:
            self._connection.request("POST", path, body.content, dict(body.headers))
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Again(type(error).__name__) from error
        if response.status in _LATER:
            self.close()
            raise Again(str(response.status))
        if response.status != 200:
            raise Problem(f"{path} of good images: {response.status} {content[:300]!r}")
        headers = {name.lower(): value for name, value in response.getheaders()}
        return WIRES[wire].decode(content, headers)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class GrpcClient:
    """ModelInfer with raw tensors, on one channel until a call fails."""

    name = "grpc"

    def __init__(self, port: int) -> None:
        self._port = port
        self._channel: grpc.Channel | None = None

    def ask(self, images: np.ndarray, chance: random.Random) -> np.ndarray:
        """The probabilities [N,10]. Raises Again, Problem."""
        if self._channel is None:
            # A channel of its own, not grpcio's shared connection to this address.
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channel = grpc.insecure_channel(f"127.0.0.1:{self._port}", options)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(GRPC_PATH)
        try:
            answer = call(WIRES["grpc"].encode(images).content[5:], timeout=ATTEMPT_S)
        except grpc.RpcError as error:
            code = error.code()
            self.close()
            if code in _LATER_GRPC:
                raise Again(code.name) from error
            said = f"{code.name} {(error.details() or '')[:300]}"
            raise Problem(f"ModelInfer of good images: {said}") from error
        return WIRES["grpc"].decode(answer, {})

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def run(
    client: HttpClient | GrpcClient,
    images: Images,
    record: Record,
    ended: Callable[[], bool],
    seed: int,
) -> None:
    """Send requests until `ended`, and compare every answer."""
    chance = random.Random(seed)
    while not ended():
        sent, expected = images.choose(chance)
        begin = time.monotonic()
        while True:
            try:
                answer = client.ask(sent, chance)
                worst = np.abs(answer - expected).max() if answer.shape == expected.shape else None
                if worst is None or not worst <= TOLERANCE:
                    record.problem(f"{client.name}: a WRONG ANSWER, {worst=}, {answer.tolist()}")
                record.answered(client.name, time.monotonic() - begin)
                break
            except Again as reason:
                record.repeats(client.name, str(reason))
            except Problem as problem:
                record.problem(f"{client.name}: {problem}")
                break
            except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
                record.problem(f"{client.name}: an unreadable answer: {error!r}")
                break
            if time.monotonic() - begin > PATIENCE_S:
                record.problem(f"{client.name}: no answer within {PATIENCE_S:g} s")
                break
            time.sleep(chance.uniform(0.1, 0.5))
        time.sleep(_PAUSE_S)
    client.close()
