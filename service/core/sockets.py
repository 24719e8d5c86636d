"""What both transports do to the sockets of their connections."""

from __future__ import annotations

import asyncio
import socket
import struct


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once, also for the kernel: it drops what is not sent."""
    if (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
