"""What both transports do to the sockets of their connections."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from service.core.budget import Budget, Claim
from service.core.errors import InFlightLimit


def claim_unwritten(
    budget: Budget,
    transport: asyncio.Transport,
    name: str,
    refused: Callable[[InFlightLimit], None],
) -> Claim:
    """Count what a transport holds whose client does not read; the rest as for `Budget.answer`."""
    size = transport.get_write_buffer_size()
    return budget.answer(
        size, name, refused, lambda: max(0, size - transport.get_write_buffer_size())
    )


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once, also for the kernel: it drops what is not sent."""
    if (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
