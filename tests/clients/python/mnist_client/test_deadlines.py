"""A server that sends a little now and then does not hold a call past its deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mnist_client import Client, DeadlineExceeded

_HEAD = b"HTTP/1.1 200 OK\r\n"
_GZIP = b"content-encoding: gzip\r\ncontent-length: 99999\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\x03"


@contextmanager
def trickling(first: bytes, again: bytes) -> Iterator[str]:
    """A server that answers with `first`, and then with `again`, over and over."""
    left = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(first)
                while not left.wait(0.02):
                    connection.sendall(again)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            left.set()
            thread.join()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (_HEAD + b"x: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (_HEAD + b"transfer-encoding: chunked\r\n\r\n5;", b"a"),
        (_HEAD + _GZIP, b"a"),  # of the file's name
    ],
    ids=["headers", "interim answers", "chunk extension", "nothing to decode"],
)
def test_no_part_of_an_answer_can_be_late(first: bytes, again: bytes) -> None:
    began = time.monotonic()
    with (
        trickling(first, again) as address,
        Client(address, timeout=0.5) as client,
        pytest.raises(DeadlineExceeded, match="within"),
    ):
        client.predict(bytes(784))
    assert time.monotonic() - began < 60
