from __future__ import annotations

import asyncio
import socket

import pytest

from service.core.sockets import reset


def drain(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def test_a_reset_connection_sends_nothing_more() -> None:
    async def main() -> None:
        ours, theirs = socket.socket(), socket.create_server(("127.0.0.1", 0))
        ours.connect(theirs.getsockname())
        accepted, _ = theirs.accept()
        accepted.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, sock=accepted
        )
        transport.write(bytes(8 << 20))  # more than the kernel takes
        reset(transport)
        await asyncio.sleep(0)
        with ours, theirs, pytest.raises(ConnectionResetError):
            drain(ours)

    asyncio.run(main())
