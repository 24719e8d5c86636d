"""Deadlines of whole requests for httpx, which limits each wait for the network alone.

A server that sends the headers of its answer byte by byte could otherwise hold a call without end.
"""

from __future__ import annotations

import math
import ssl
import threading
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpcore
import httpx


class Deadline(threading.local):
    """When the request of this thread must end, by `monotonic`."""

    end = math.inf

    def left(self, timeout: float | None) -> float:
        """Seconds that a wait may take. Raises httpcore.ReadTimeout after the end."""
        left = min(self.end - monotonic(), math.inf if timeout is None else timeout)
        if left <= 0:
            raise httpcore.ReadTimeout("The answer arrives too slowly.")
        return left


def limit(client: httpx.Client) -> Deadline:
    """Make every wait of a client end at the deadline of its thread, which is returned."""
    deadline = Deadline()
    for transport in (client._transport, *client._mounts.values()):
        # httpx has no option for it.
        if (pool := getattr(transport, "_pool", None)) is not None:
            pool._network_backend = _Backend(pool._network_backend, deadline)
    return deadline


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._deadline.left(timeout)
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._deadline.left(timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
