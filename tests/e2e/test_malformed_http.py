"""Malformed HTTP over real sockets: each request is refused with a JSON error of the class 4xx."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from service.access.origins import SAFE_HEADERS
from tests.conftest import Server

INFER = b"POST /v2/models/mnist/infer HTTP/1.1\r\nHost: localhost\r\n"
PREDICT = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
PIXELS = b"310\r\n" + bytes(784) + b"\r\n"  # a whole image, and a whole chunk


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=120) as connection:
        yield connection
    # Neither the process nor another connection is harmed.
    assert server.get("/v2/health/ready")[0] == 200
    assert server.process.poll() is None


def answer(connection: socket.socket) -> tuple[int, str]:
    """The status and the error of the answer, which must be JSON."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.headers["content-type"] == "application/json"
    assert set(SAFE_HEADERS) <= set(response.headers.items())
    return response.status, json.loads(response.read())["error"]


@pytest.mark.parametrize(
    "request_",
    [
        INFER + b"Content-Length: 100\r\n\r\n{}",
        PREDICT + b"Content-Length: 1568\r\n\r\n" + bytes(784),
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1",
        INFER + CHUNKED + b'5\r\n{"a"',
        PREDICT + CHUNKED + PIXELS,
        PREDICT + CHUNKED + PIXELS + b"310\r\n" + bytes(100),
        PREDICT + CHUNKED + PIXELS + b"31",
    ],
    ids=["length", "whole image", "no route", "in a chunk", "no last chunk", "image", "size"],
)
def test_a_body_cut_short_by_a_client_that_still_reads_is_refused(
    connection: socket.socket, request_: bytes
) -> None:
    connection.sendall(request_)
    connection.shutdown(socket.SHUT_WR)
    status, error = answer(connection)
    assert (status, "cut short" in error) == (400, True)


def test_a_malformed_chunk_is_refused(connection: socket.socket) -> None:
    connection.sendall(PREDICT + CHUNKED + PIXELS + b"zz\r\n")
    status, error = answer(connection)
    assert (status, "damaged" in error) == (400, True)


def test_a_chunked_body_is_answered_with_its_trailers(
    connection: socket.socket,
) -> None:
    connection.sendall(PREDICT + CHUNKED + PIXELS + b"0\r\n\r\n")
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.status == 200
    response.read()
    connection.sendall(PREDICT + CHUNKED + PIXELS + b"0\r\na: b\r\n\r\n")
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.status == 200


@pytest.mark.parametrize("path", ["/v2/repository/models/mnist/load", "/predict", "/nowhere"])
@pytest.mark.parametrize(
    ("header", "named"),
    [
        (b"Host: [::1", "Host '[::1' is malformed."),
        (b"Host: ::1]", "Host '::1]' is malformed."),
        (b"Host: localhost:abc", "Host 'localhost:abc' is malformed."),
        (b"Host: localhost:99999", "Host 'localhost:99999' is malformed."),
        (b"Host: [v9.x]", "list the name in allowed_hosts"),
        (b"Host: evil.example", "list the name in allowed_hosts"),
        (b"Host: a b", "list the name in allowed_hosts"),
        (b"Host: \xff", "list the name in allowed_hosts"),
        (b"Host: localhost\r\nOrigin: http://[::1", "Origin 'http://[::1' is malformed."),
        (b"Host: localhost\r\nOrigin: http://localhost:abc", "localhost:abc' is malformed."),
    ],
)
def test_a_request_with_another_or_a_malformed_host_or_origin_is_refused(
    connection: socket.socket, path: str, header: bytes, named: str
) -> None:
    connection.sendall(
        b"POST " + path.encode() + b" HTTP/1.1\r\n" + header + b"\r\nContent-Length: 2\r\n\r\n{}"
    )
    status, error = answer(connection)
    assert (status, named in error) == (403, True), error


@pytest.mark.parametrize("host", [b"", b"127.0.0.1", b"LOCALHOST:1", b"192.0.2.1:80"])
@pytest.mark.parametrize("path", [b"/nowhere", b"/v2/models/none"])
def test_a_host_that_no_web_page_can_choose_is_accepted(
    connection: socket.socket, host: bytes, path: bytes
) -> None:
    connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert answer(connection)[0] == 404


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (b"POST /v2/repository/models/%2fetc/load HTTP/1.1", 404),
        (b"POST /v2/repository/models/..%2f..%2fetc/load HTTP/1.1", 404),
        (b"GET //v2//models//mnist HTTP/1.1", 404),
        (b"GET /%ff%fe HTTP/1.1", 404),
        (b"GET /%00 HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"BREW /v2 HTTP/1.1", 405),
    ],
)
def test_an_odd_path_or_method_is_refused_in_json(
    connection: socket.socket, request_line: bytes, expected: int
) -> None:
    connection.sendall(request_line + b"\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    assert answer(connection)[0] == expected
