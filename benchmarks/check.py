"""Whether a contender's answers are right: asked before it is timed."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

import grpc
import numpy as np

from benchmarks.models import Pixels, Probabilities
from benchmarks.wire import WIRES, Body

_FRAME = 5  # bytes of gRPC's length prefix
_ASK_WITHIN_S = 30.0


class WrongAnswer(Exception):
    """A contender answered wrongly, or not at all; the message says how."""


def ask(port: int, path: str, encoding: str, body: Body) -> tuple[bytes, Mapping[str, str]]:
    """Send one request. Raises WrongAnswer for a status that is not success, OSError for none."""
    if encoding == "grpc":
        return _ask_grpc(port, path, body), {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_WITHIN_S)
    try:
        connection.request("POST", path, body.content, dict(body.headers))
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise WrongAnswer(f"no HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise WrongAnswer(f"status {response.status}: {content[:300].decode(errors='replace')}")
    return content, {name.lower(): value for name, value in response.getheaders()}


def _ask_grpc(port: int, path: str, body: Body) -> bytes:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        try:
            answer = call(body.content[_FRAME:], timeout=_ASK_WITHIN_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise ConnectionError(error.details()) from error
            raise WrongAnswer(f"{error.code().name}: {error.details()}") from error
    return answer


def check(
    port: int, path: str, encoding: str, images: Pixels, wanted: Probabilities, tolerance: float
) -> bytes:
    """Ask for these images in one request and compare; the answer. Raises WrongAnswer."""
    wire = WIRES[encoding]
    try:
        content, headers = ask(port, path, encoding, wire.encode(images))
    except OSError as error:
        raise WrongAnswer(f"no answer: {error}") from error
    try:
        got = wire.decode(content, headers)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WrongAnswer(f"unreadable answer ({error!r}): {content[:200]!r}") from error
    compare(got, wanted, tolerance)
    return content


def compare(got: Probabilities, wanted: Probabilities, tolerance: float) -> None:
    """Raise WrongAnswer unless every probability is within the tolerance."""
    if got.shape != wanted.shape:
        raise WrongAnswer(f"shape {got.shape} instead of {wanted.shape}")
    worst = float(np.max(np.abs(got - wanted)))
    # Written so that NaN fails it as well.
    if not worst <= tolerance:
        raise WrongAnswer(f"a probability is off by {worst:.2g}")
