"""The open loop: its parsing, and latencies while a server stalls."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import open_loop
from benchmarks.load.open_loop import answer_length
from benchmarks.load.result import GeneratorError
from benchmarks.wire_formats import Body

STALL_S = 0.4


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_length_of_an_answer_is_known_once_its_headers_are_complete(content, further):
    headers = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nx-a: b\r\n\r\n".encode()
    answer = headers + content
    assert answer_length(answer + further) == len(answer)
    assert answer_length(headers[:-1]) is None


@given(st.lists(st.binary(min_size=1, max_size=20)), st.binary(max_size=10))
def test_chunked_answer_ends_with_its_empty_chunk(chunks, further):
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for chunk in [*chunks, b""]:
        assert answer_length(answer) is None
        answer += f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    assert answer_length(answer + further) == len(answer)


def test_answer_that_ends_with_its_connection_is_an_error():
    with pytest.raises(GeneratorError):
        answer_length(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")


class StallingServer(ThreadingHTTPServer):
    """Answers no request during a stall at the start, and every request at once after it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stalled_until = 0.0


class _Handler(BaseHTTPRequestHandler):
    server: StallingServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        # The stall begins with the first request.
        self.server.stalled_until = self.server.stalled_until or time.monotonic() + STALL_S
        time.sleep(max(0.0, self.server.stalled_until - time.monotonic()))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments: object) -> None:
        pass


def test_latency_during_a_stall_counts_from_when_a_request_was_due(tmp_path: Path):
    # Two connections at 100/s: a closed loop would see two slow requests, 2 % of all. Here some 40
    # requests are due during the stall, though they cannot be sent.
    with StallingServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        load = open_loop.load(
            server.server_port, "/", Body(b"x", ()), connections=2, rate=100, seconds=1,
            core=None, scratch=tmp_path,
        )  # fmt: skip
        server.shutdown()
    assert (load.requests, load.failed) == (100, 0)
    assert load.p99_ms > 0.8 * STALL_S * 1000
    assert load.p50_ms < 0.5 * STALL_S * 1000
