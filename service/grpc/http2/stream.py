"""One call on an HTTP/2 connection: what has come of it, and what is still to go."""

from __future__ import annotations

import asyncio

from service.grpc.http2.frames import STREAM_WINDOW, Trailers
from service.grpc.http2.headers import Head


class Stream:
    """One call on a connection."""

    __slots__ = (
        "began",
        "buffer",
        "contents",
        "deadline",
        "drained",
        "ended",
        "ending",
        "head",
        "headers_sent",
        "id",
        "pending",
        "receive_window",
        "request_id",
        "send_window",
        "sent",
        "task",
        "timer",
        "ungranted",
    )

    def __init__(self, number: int, head: Head, request_id: str, send_window: int) -> None:
        self.id = number
        self.head = head
        self.request_id = request_id
        self.began = 0.0
        self.buffer: bytes | bytearray = b""
        # Messages of a streaming call that wait for it; None says that there are no more.
        self.contents: asyncio.Queue[tuple[int, bytes] | None] | None = None
        self.ended = False  # by the peer
        self.deadline: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.receive_window = STREAM_WINDOW
        self.ungranted = 0  # bytes received that the peer has not been given back as window
        self.send_window = send_window
        self.pending = b""  # data to send, of which
        self.sent = 0  # so many bytes are out; the rest waits for a window
        self.drained: asyncio.Event | None = None
        self.headers_sent = False
        self.ending: Trailers | None = None
