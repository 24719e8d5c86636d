"""mnist-probe against servers that answer anything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from service import probe
from service.probe import main
from tests.conftest import free_ports

Start = Callable[[bytes], list[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server that answers every connection with these bytes; returns the probe's flags."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the end of the test
                return
            with closing(connection):
                connection.settimeout(60)
                try:
                    connection.recv(65536)
                    connection.sendall(answer)
                except OSError:
                    continue

    def start(answer: bytes) -> list[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        grpc = socket.create_server(("127.0.0.1", 0))
        listeners.append(grpc)
        http_port, grpc_port = listener.getsockname()[1], grpc.getsockname()[1]
        return ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_server_that_is_ready_on_both_ports_passes(start: Start) -> None:
    flags = start(response("200 OK", b"{}"))
    assert main(flags) == 0
    assert main([*flags, "--host", "0.0.0.0"]) == 0


def test_a_closed_grpc_port_fails(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    (closed,) = free_ports(1)
    assert main([*start(response("200 OK", b"{}")), "--grpc-port", str(closed)]) == 1
    assert "is mnist-serve running?" in capsys.readouterr().err


def test_the_reason_of_an_unready_server_is_repeated(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    body = b'{"ready": false, "reason": "Model \'mnist\' is not loaded."}'
    assert main(start(response("503 Service Unavailable", body))) == 1
    assert capsys.readouterr().err == "mnist-probe: not ready: Model 'mnist' is not loaded.\n"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff", b"[]", b'"reason"', b"null", b'{"why": 1}', b"[" * 100_000],
    ids=["empty", "HTML", "not UTF-8", "list", "text", "null", "other field", "deep nesting"],
)
def test_a_body_without_a_reason_is_reported_by_its_status(
    start: Start, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    assert main(start(response("404 Not Found", body))) == 1
    assert "/v2/health/ready answers 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"HTTP/1.1",
        b"HTTP/1.1 2000000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
    ids=[
        "nothing",
        "SSH",
        "HTTP/2",
        "half a line",
        "impossible status",
        "many headers",
        "long header",
        "cut short",
        "bad chunk",
    ],
)
def test_a_port_that_does_not_speak_http_fails_with_one_line(
    start: Start, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    assert main(start(answer)) == 1
    error = capsys.readouterr().err
    assert error.startswith("mnist-probe: not ready: ")
    assert error.endswith("is mnist-serve running?\n")
    assert error.count("\n") == 1


def test_a_server_that_never_answers_fails_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["--http-port", str(silent.getsockname()[1])]) == 1
    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a" * 64 + ".invalid", "a b"])
def test_a_host_that_is_not_a_name_fails_with_one_line(
    capsys: pytest.CaptureFixture[str], host: str
) -> None:
    assert main(["--host", host]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_settings_have_a_status_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--http-port", "0"]) == 2
    assert "http_port" in capsys.readouterr().err
