"""What attacks are made of: callers in threads, whatever the server does to them."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

TIMEOUT_S = 30.0
MB = 1024 * 1024
LARGEST_BODY = 8 * MB - 1024  # bytes, within the default limit


class Target(NamedTuple):
    """The ports of the server."""

    http_port: int
    grpc_port: int


Ended = Callable[[], bool]
Attack = Callable[[Target, Ended], Counter[str]]


def in_threads(count: int, ended: Ended, once: Callable[[Counter[str]], None]) -> Counter[str]:
    """Repeat `once` in some threads until `ended`; errors of the connection are counted."""
    counts: Counter[str] = Counter()

    def repeat() -> None:
        mine: Counter[str] = Counter()
        while not ended():
            try:
                once(mine)
            except (OSError, http.client.HTTPException) as error:
                mine[type(error).__name__] += 1
                time.sleep(0.05)
        counts.update(mine)

    threads = [threading.Thread(target=repeat) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def exchange(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """One HTTP request on a connection of its own. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()


def posts(
    port: int, path: str, bodies: Iterator[bytes], content_type: str, **headers: str
) -> Callable[[Counter[str]], None]:
    """Post the next body; count the statuses."""
    fields = {"content-type": content_type} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }

    def once(counts: Counter[str]) -> None:
        status, _ = exchange(port, "POST", path, next(bodies), fields)
        counts[str(status)] += 1

    return once


def selected(
    reading: Sequence[socket.socket], writing: Sequence[socket.socket], seconds: float
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Those that can be read from and written to within this time, as select.select() says.

    That refuses descriptors of 1,024 and more, which a run of many attacks has.
    """
    poller = select.poll()
    events: dict[socket.socket, int] = {}
    for connection in reading:
        events[connection] = select.POLLIN
    for connection in writing:
        events[connection] = events.get(connection, 0) | select.POLLOUT
    for connection, wanted in events.items():
        poller.register(connection, wanted)
    found = dict(poller.poll(seconds * 1000))
    closed = select.POLLHUP | select.POLLERR
    return (
        [each for each in reading if found.get(each.fileno(), 0) & (select.POLLIN | closed)],
        [each for each in writing if found.get(each.fileno(), 0) & (select.POLLOUT | closed)],
    )
