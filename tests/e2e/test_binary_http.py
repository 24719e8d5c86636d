"""The binary tensor extension and compressed bodies byte by byte, over raw sockets."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Mnist, Server

INFER = "/v2/models/mnist/infer"
LENGTH = "inference-header-content-length"


def header_of(size: int, rows: int = 1, **more: Any) -> bytes:
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [rows, 28, 28],
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [tensor], **more}).encode()


class Connection:
    """One keep-alive connection; each request must leave it usable for the next one."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.http_port), timeout=120)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def post(self, body: bytes, *headers: str, path: str = INFER) -> tuple[int, Any, bytes]:
        lines = [
            f"POST {path} HTTP/1.1",
            "host: 127.0.0.1",
            f"content-length: {len(body)}",
            *headers,
        ]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return self.answer()


def test_binary_answer_is_json_followed_by_tensors(server: Server, mnist: Mnist) -> None:
    raw = mnist.images[:2].tobytes()
    header = header_of(len(raw), 2, id="x", parameters={"binary_data_output": True})
    with Connection(server) as connection:
        status, headers, body = connection.post(header + raw, f"{LENGTH}: {len(header)}")
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    size = int(headers[LENGTH])
    answer = json.loads(body[:size])
    assert answer["id"] == "x"
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    # FP32 [2,10] twice, then BOOL [2], UINT8 [2] and BOOL [2,10].
    assert sizes == [80, 80, 2, 2, 20]
    assert all("data" not in output for output in answer["outputs"])
    assert len(body) == size + sum(sizes)
    probabilities = np.frombuffer(body[size + 80 : size + 160], np.float32).reshape(2, 10)
    assert probabilities.argmax(axis=1).tolist() == mnist.labels[:2].tolist()
    accepted, reason = body[size + 160 : size + 162], body[size + 162 : size + 164]
    assert (accepted, reason) == (b"\1\1", b"\0\0")


def test_json_answer_to_a_binary_request_has_no_header_length(server: Server, mnist: Mnist) -> None:
    header = header_of(784)
    with Connection(server) as connection:
        status, headers, body = connection.post(
            header + mnist.images[0].tobytes(), f"{LENGTH}: {len(header)}"
        )
    assert status == 200
    assert LENGTH not in headers
    assert len(json.loads(body)["outputs"][1]["data"]) == 10


def test_body_may_consist_of_the_tensor_alone(server: Server, mnist: Mnist) -> None:
    for count in (1, 3):
        with Connection(server) as connection:
            raw = mnist.images[:count].tobytes()
            status, headers, body = connection.post(raw, f"{LENGTH}: 0")
        assert status == 200
        size = int(headers[LENGTH])
        outputs = json.loads(body[:size])["outputs"]
        assert [o["shape"] for o in outputs] == [[count, 10]] * 2 + [[count]] * 2 + [[count, 10]]
        first = np.frombuffer(body[size : size + 40 * count], np.float32).reshape(count, 10)
        assert first.argmax(axis=1).tolist() == mnist.labels[:count].tolist()


GOOD = header_of(784)
WRONG_BODIES = [
    (GOOD + bytes(784), [f"{LENGTH}: x"], "Inference-Header-Content-Length"),
    (GOOD + bytes(784), [f"{LENGTH}: -1"], "Inference-Header-Content-Length"),
    (GOOD + bytes(784), [f"{LENGTH}: +{len(GOOD)}"], "Inference-Header-Content-Length"),
    (GOOD + bytes(784), [f"{LENGTH}: {'9' * 30}"], "Inference-Header-Content-Length"),
    (GOOD + bytes(784), [f"{LENGTH}: {len(GOOD) + 785}"], "Inference-Header-Content-Length"),
    (GOOD + bytes(784), [f"{LENGTH}: {len(GOOD) - 1}"], "JSON"),
    (GOOD + bytes(784), [f"{LENGTH}: {len(GOOD) + 1}"], "JSON"),
    (GOOD + bytes(784), [], "JSON"),
    (GOOD, [], "binary_data_size"),
    (GOOD + bytes(783), [f"{LENGTH}: {len(GOOD)}"], "binary_data_size"),
    (GOOD + bytes(785), [f"{LENGTH}: {len(GOOD)}"], "1 bytes more"),
    (bytes(783), [f"{LENGTH}: 0"], "image"),
    (b"", [f"{LENGTH}: 0"], "image"),
    *[
        (header + bytes(784), [f"{LENGTH}: {len(header)}"], word)
        for header, word in (
            (header_of(-1), "binary_data_size"),
            (header_of(783), "1 bytes more"),
            (GOOD.replace(b"784", b'"784"'), "binary_data_size"),
            (GOOD.replace(b"784", b"784.0"), "binary_data_size"),
            (GOOD.replace(b"784", b"true"), "binary_data_size"),
            (GOOD.replace(b"784", b"[784]"), "parameters"),
            (GOOD.replace(b'"parameters"', b'"data": [1], "parameters"'), "outside"),
            (header_of(784, parameters={"binary_data_output": 1}), "binary_data_output"),
            (header_of(784, parameters=[1]), "parameters"),
            (header_of(784, outputs=[{"name": "logits", "parameters": {"binary_data": "y"}}]), "y"),
            (
                header_of(784, outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
                "classification",
            ),
            (
                header_of(784, outputs=[{"name": "logits"}, {"name": "logits"}]),
                "already exists",
            ),
            (b"[]", "object"),
        )
    ],
]


def test_wrong_binary_body_is_rejected_by_name_and_the_connection_stays_usable(
    server: Server, mnist: Mnist
) -> None:
    with Connection(server) as connection:
        for body, headers, word in WRONG_BODIES:
            status, _, answer = connection.post(body, *headers)
            assert status == 400, (body[:200], answer)
            error = json.loads(answer)
            assert list(error) == ["error"]
            assert word in error["error"], (body[:200], answer)
            status, _, answer = connection.post(
                GOOD + mnist.images[0].tobytes(), f"{LENGTH}: {len(GOOD)}"
            )
            assert status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: five\r\n\r\n",
        b"POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\n"
        b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\n"
        b"transfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v2 HTTP/1.1\r\n" + b"x" * 70_000 + b": y\r\n\r\n",
    ],
    ids=["negative", "words", "two lengths", "chunk size", "no path", "TLS", "endless header"],
)
def test_malformed_http_affects_its_own_connection_only(server: Server, request_: bytes) -> None:
    with Connection(server) as other, Connection(server) as connection:
        connection.send(request_)
        try:
            status, _, _ = connection.answer()
            assert status in (400, 408, 413, 431)
        except (http.client.HTTPException, ConnectionError):
            pass  # the server may close the connection without an answer
        assert other.post(GOOD + bytes(784), f"{LENGTH}: {len(GOOD)}")[0] == 200


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=1200),
    st.one_of(st.integers(-2, 1300).map(str), st.text("0123456789+-_ ax", max_size=6)),
)
def test_arbitrary_binary_bodies_are_never_internal_errors(
    server: Server, body: bytes, length: str
) -> None:
    with Connection(server) as connection:
        status, _, answer = connection.post(body, f"{LENGTH}: {length}")
        assert status in (200, 400), answer


def compressed(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body) if encoding == "gzip" else zlib.compress(body)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [INFER, "/predict"])
def test_compressed_request_body_is_decompressed(
    server: Server, mnist: Mnist, encoding: str, path: str
) -> None:
    raw = mnist.images[0].tobytes()
    plain = raw if path == "/predict" else GOOD + raw
    with Connection(server) as connection:
        status, headers, _ = connection.post(
            compressed(plain, encoding),
            f"{LENGTH}: {len(GOOD)}",
            f"content-encoding: {encoding}",
            "content-type: application/octet-stream",
            "accept-encoding: gzip",
            path=path,
        )
    assert status == 200
    assert "content-encoding" not in headers  # the answer is too small to compress


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate;q=0.5, gzip;q=0.8", "gzip"),
        ("gzip;q=0.1, deflate", "deflate"),
        ("*", "gzip"),
        ("gzip;q=0, *;q=0.5", "deflate"),
        ("br", None),
        ("gzip;q=0", None),
        ("identity", None),
    ],
)
def test_large_answer_has_the_encoding_that_the_client_prefers(
    server: Server, mnist: Mnist, accepted: str, encoding: str | None
) -> None:
    header = header_of(7840, 10)
    with Connection(server) as connection:
        status, headers, body = connection.post(
            header + mnist.images[:10].tobytes(),
            f"{LENGTH}: {len(header)}",
            f"accept-encoding: {accepted}",
        )
    assert status == 200
    assert headers.get("content-encoding") == encoding
    assert headers["vary"] == "accept-encoding"
    plain = zlib.decompress(body, wbits=47) if encoding else body
    assert json.loads(plain)["outputs"][0]["shape"] == [10, 10]


@pytest.fixture(scope="module")
def small_server(start_server: Callable[..., Server]) -> Server:
    return start_server(max_request_bytes=100_000)


def test_invalid_compressed_body_is_rejected(small_server: Server) -> None:
    good = gzip.compress(GOOD + bytes(784))
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    with Connection(small_server) as connection:
        for body, encoding, status, word in (
            (b"no gzip", "gzip", 400, "gzip"),
            (b"", "gzip", 400, "body"),
            (good[:-10], "gzip", 400, "too early"),
            (good + b"trailing", "gzip", 400, "gzip"),
            (good[:-8] + struct.pack("<II", 1, 2), "gzip", 400, "gzip"),
            (good, "deflate", 400, "deflate"),
            (bomb, "gzip", 413, "max_request_bytes"),
            (gzip.compress(bytes(60_000)) * 2, "gzip", 413, "max_request_bytes"),
            (good, "br", 415, "br"),
            (good, "gzip, gzip", 415, "gzip, gzip"),
        ):
            answered, _, answer = connection.post(
                body, f"{LENGTH}: {len(GOOD)}", f"content-encoding: {encoding}"
            )
            assert answered == status, (encoding, answer)
            assert word in json.loads(answer)["error"]
        answered, _, _ = connection.post(good, f"{LENGTH}: {len(GOOD)}", "content-encoding: gzip")
        assert answered == 200
