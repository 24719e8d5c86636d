"""gRPC carried by our own HTTP/2: the listening socket, and all connections of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from service.core.inflation import inflate
from service.grpc.answering import MESSAGE_SLACK, Calls, Rpc
from service.grpc.http2.connection import Connection, Limits
from service.settings import Settings

_BACKLOG = 1024


class Http2Server:
    """Listens on a port that the workers share; lives on the worker's event loop."""

    def __init__(self, rpcs: Mapping[str, Rpc], calls: Calls, settings: Settings) -> None:
        self._rpcs = rpcs
        self._calls = calls
        self._settings = settings
        # Up to twice the limit a message is refused by `Calls`, with the limit's name; beyond it
        # before it is read.
        self._max_message = 2 * (settings.max_request_bytes + MESSAGE_SLACK)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections."""
        loop, settings = asyncio.get_running_loop(), self._settings
        limits = Limits(
            self._max_message,
            settings.max_connections,
            settings.max_connections,
            settings.body_timeout,
        )
        self._server = await loop.create_server(
            lambda: Connection(self._rpcs, self._calls, limits, self._inflate, self._connections),
            settings.host,
            settings.grpc_port,
            reuse_port=True,  # every worker binds the port; the kernel spreads connections
            backlog=_BACKLOG,
        )

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; give those in flight `timeout` seconds to finish."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.stop()
        end = asyncio.get_running_loop().time() + timeout
        while self._connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()

    async def _inflate(self, content: bytes, encoding: str) -> bytes:
        """Undo a message's compression in a thread: its size is not to be seen from outside."""
        work = partial(inflate, content, encoding, self._max_message)
        return await asyncio.get_running_loop().run_in_executor(None, work)
