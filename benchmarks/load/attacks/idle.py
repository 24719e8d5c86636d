"""Connections that are opened and left alone."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import Counter

import numpy as np

from benchmarks.load.arrivals import frame
from benchmarks.load.attacks.callers import Ended, Target
from benchmarks.load.attacks.calls import Calls
from benchmarks.wire_formats import WIRES
from service.grpc.http2 import frames


def idle_http_connections(target: Target, ended: Ended) -> Counter[str]:
    """Connections that say nothing, as many as may be open, opened again when they are closed."""
    return _idle(target.http_port, 64, b"", ended)


def idle_grpc_connections(target: Target, ended: Ended) -> Counter[str]:
    """1,100 gRPC connections with a preface and no call; a newcomer calls every 100 ms."""
    counts: Counter[str] = Counter()
    done = threading.Event()
    image = WIRES["grpc"].encode(np.zeros((1, 28, 28), np.uint8)).content

    def call() -> None:
        while not done.is_set():
            answers: Counter[str] = Counter()
            with contextlib.suppress(OSError), Calls(target.grpc_port) as calls:
                calls.socket.sendall(calls.headers() + calls.data(image))
                end = time.monotonic() + 5
                while not answers and time.monotonic() < end and calls.read(answers, 0.05):
                    pass
            counts[f"newcomers {min(answers, default='unanswered')}"] += 1
            time.sleep(0.1)

    caller = threading.Thread(target=call)
    caller.start()
    preface = frames.PREFACE + frame(frames.SETTINGS, 0, 0, b"")
    counts.update(_idle(target.grpc_port, 1100, preface, ended))
    done.set()
    caller.join()
    return counts


def _idle(port: int, number: int, first: bytes, ended: Ended) -> Counter[str]:
    counts: Counter[str] = Counter()
    poller = select.poll()
    connections: dict[int, socket.socket] = {}
    while not ended():
        for _ in range(min(50, number - len(connections))):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), timeout=0.5)
                connection.sendall(first)
                connections[connection.fileno()] = connection
                poller.register(connection, select.POLLIN)
                counts["opened"] += 1
        for fileno, _ in poller.poll(20):
            connection = connections[fileno]
            content = b""
            with contextlib.suppress(OSError):
                content = connection.recv(65536)
            if not content:
                poller.unregister(connection)
                del connections[fileno]
                connection.close()
                counts["closed by the server"] += 1
    for connection in connections.values():
        connection.close()
    return counts
