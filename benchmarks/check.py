"""Checks that a contender answers, and answers correctly, before it is timed."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
import numpy as np

from benchmarks.access import Access
from benchmarks.served_models import Pixels, Probabilities, test_images
from benchmarks.wire_formats import WIRES, Body

if TYPE_CHECKING:
    from benchmarks.server_process import Server

GRPC_FRAME = 5  # bytes of gRPC's length prefix
_TIMEOUT_S = 30.0


class WrongAnswer(Exception):
    """A contender gave a wrong answer or none; the message says how."""


def ask(
    port: int, path: str, encoding: str, body: Body, access: Access | None = None
) -> tuple[bytes, Mapping[str, str]]:
    """Send one request, over TLS and with the key if there is an `access`.

    Raises WrongAnswer for an error status, OSError for no answer.
    """
    if encoding == "grpc":
        return _ask_grpc(port, path, body, access), {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    if access:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=_TIMEOUT_S, context=access.context()
        )
    try:
        headers = body.headers + (access.headers if access else ())
        connection.request("POST", path, body.content, dict(headers))
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise WrongAnswer(f"not HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise WrongAnswer(f"status {response.status}: {content[:300].decode(errors='replace')}")
    return content, {name.lower(): value for name, value in response.getheaders()}


def _ask_grpc(port: int, path: str, body: Body, access: Access | None) -> bytes:
    address = f"127.0.0.1:{port}"
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if access:
        credentials = grpc.ssl_channel_credentials(access.ca.read_bytes())
        connected = grpc.secure_channel(address, credentials, options)
    else:
        connected = grpc.insecure_channel(address, options)
    with connected as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        metadata = access.headers if access else ()
        try:
            answer = call(body.content[GRPC_FRAME:], timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise ConnectionError(error.details()) from error
            raise WrongAnswer(f"{error.code().name}: {error.details()}") from error
    return answer


def is_ready(server: Server, wire: str) -> bool:
    """Whether the server answers one image of this wire format with success."""
    encoding = server.contender.encoding(wire)
    body = WIRES[encoding].encode(test_images(1))
    try:
        path = server.contender.endpoints[wire]
        ask(server.port(wire), path, encoding, body, server.access)
    except (OSError, WrongAnswer):
        return False
    return True


def check(
    port: int,
    path: str,
    encoding: str,
    images: Pixels,
    expected: Probabilities,
    tolerance: float,
    access: Access | None = None,
) -> bytes:
    """Send the images [N,28,28] in one request and return the answer. Raises WrongAnswer."""
    wire = WIRES[encoding]
    try:
        content, headers = ask(port, path, encoding, wire.encode(images), access)
    except OSError as error:
        raise WrongAnswer(f"no answer: {error}") from error
    try:
        answer = wire.decode(content, headers)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WrongAnswer(f"unreadable answer ({error!r}): {content[:200]!r}") from error
    compare(answer, expected, tolerance)
    return content


def check_images(
    server: Server,
    wire: str,
    images: Pixels,
    expected: Probabilities,
    tolerance: float,
    per_request: int = 1,
) -> int:
    """Check images [N,28,28] in requests of `per_request`; the first image's go last.

    Returns the length in bytes of the last answer, which is to the request that will be timed.
    Raises WrongAnswer.
    """
    contender = server.contender
    content = b""
    for start in reversed(range(0, len(images), per_request)):
        part = slice(start, start + per_request)
        content = check(
            server.port(wire),
            contender.endpoints[wire],
            contender.encoding(wire),
            images[part],
            expected[part],
            tolerance,
            server.access,
        )
    return len(content)


def compare(answer: Probabilities, expected: Probabilities, tolerance: float) -> None:
    """Raise WrongAnswer unless every probability is within the tolerance."""
    if answer.shape != expected.shape:
        raise WrongAnswer(f"shape {answer.shape} instead of {expected.shape}")
    worst = float(np.max(np.abs(answer - expected)))
    # NaN compares as false, so it fails this test too.
    if not worst <= tolerance:
        raise WrongAnswer(f"a probability is off by {worst:.2g}")
