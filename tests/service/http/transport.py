"""A transport without a socket, a front and a loop: what tests of connections have in common."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from service.http.carrier import Scope
from service.http.exchange import Ended


class Transport:
    """A socket's transport that remembers."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.output = b""
        self.writes = self.unsent = 0
        self.is_paused = self.has_ended = self.is_aborted = self.is_closed = False
        self.options: list[Any] = []
        self.limit: int | None = None  # of bytes that are taken before the protocol has to pause

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> Any:
        addresses = {"peername": ("192.0.2.1", 5), "sockname": ("::1", 80, 0, 0)}
        return addresses.get(name, self)

    def setsockopt(self, *option: Any) -> None:
        self.options.append(option)

    def write(self, data: bytes) -> None:
        assert not self.has_ended
        self.writes += 1
        self.output += data
        if self.limit is not None and len(self.output) > self.limit:
            self.unsent = len(self.output) - self.limit
            self.protocol.pause_writing()

    def take_all(self) -> None:
        """The socket takes everything from now on."""
        self.limit, self.unsent = None, 0
        self.protocol.resume_writing()

    def write_eof(self) -> None:
        self.has_ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


async def echo(scope: Scope, request: Any) -> None:
    """Answer with the request line and the body, or with 400 for half a body."""
    try:
        body = await request()
    except Ended:
        request.response_bytes(400, [], b"half")
        return
    request.response_bytes(200, [], f"{scope.method} {scope.path} ".encode() + body)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*values: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*values, **named), 60))

    return run
