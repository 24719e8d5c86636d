"""The generator of phases: what it counts, against servers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.load.arrivals import Generator, Outcome, Phase, Plan, grpc_status, header_block
from service.grpc.http2.headers import Status, trailers

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"x" * 10


@contextmanager
def serve(answer: Callable[[int], bytes | None]) -> Iterator[int]:
    """A server that answers its n-th request with `answer(n)`; None closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    lock = threading.Lock()
    numbers = iter(range(10**9))

    def talk(connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):
            received = b""
            while data := connection.recv(65536):
                received += data
                while received.endswith(REQUEST):
                    received = b""
                    with lock:
                        number = next(numbers)
                    content = answer(number)
                    if content is None:
                        return
                    connection.sendall(content)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def run(
    port: int, folder: Path, *phases: Phase, connections: int, **fields: float
) -> list[Outcome]:
    body = folder / "body"
    body.write_bytes(REQUEST)
    plan = Plan(
        port=port, wire="http", path="/", body_file=str(body), headers=(),
        connections=connections, answer_bytes=2, phases=phases, **fields,
    )  # fmt: skip
    return Generator(plan).run()


def test_every_request_of_a_closed_loop_has_an_answer(tmp_path: Path) -> None:
    with serve(lambda number: OK) as port:
        (outcome,) = run(port, tmp_path, Phase("closed", 0.2, in_flight=3), connections=4)
    assert len(outcome.results) > 3
    assert set(outcome.results) == {"ok"}
    assert outcome.not_sent == 0


def test_what_a_server_answers_is_told_apart(tmp_path: Path) -> None:
    answers = [OK, REFUSED, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", None]
    with serve(lambda number: answers[number % 4]) as port:
        (outcome,) = run(port, tmp_path, Phase("open", 0.5, rate=200), connections=8)
    assert set(outcome.results) == {"ok", "503", "wrong", "lost"}
    assert set(outcome.retry_after) == {3.0}


def test_arrivals_that_find_no_connection_are_counted_and_phases_overlap(tmp_path: Path) -> None:
    answered = threading.Event()
    threading.Timer(1.0, answered.set).start()

    def wait(number: int) -> bytes:
        answered.wait(30)
        return OK

    with serve(wait) as port:
        first, second = run(
            port, tmp_path, Phase("a", 0.5, rate=100), Phase("b", 0.3, rate=100), connections=2
        )
    assert first.results == ["ok", "ok"]  # they are answered in the next phase, or after it
    assert first.not_sent > 10
    assert second.not_sent > 5


def test_an_answer_after_its_deadline_is_late(tmp_path: Path) -> None:
    def slow(number: int) -> bytes:
        time.sleep(0.05)
        return OK

    with serve(slow) as port:
        (outcome,) = run(
            port, tmp_path, Phase("open", 0.2, rate=50), connections=20, deadline_s=0.01
        )
    assert set(outcome.results) == {"late"}


@pytest.mark.parametrize("code", ["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_grpc_status_is_read_from_the_trailers_of_this_server(code: str) -> None:
    block = trailers(Status(code, "grpc-status of a message"), "id")
    assert grpc_status(block) == ("ok" if code == "OK" else code)


def test_a_header_block_is_what_hpack_decodes() -> None:
    import hpack

    fields = [(":path", "/a"), ("content-type", "application/grpc"), ("x", "y" * 126)]
    assert hpack.Decoder().decode(header_block(fields)) == fields
