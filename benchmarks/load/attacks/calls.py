"""gRPC from frames, as misbehaving clients send them."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.load.arrivals import frame, grpc_status, header_block
from benchmarks.load.attacks.callers import MB, TIMEOUT_S, selected
from benchmarks.wire_formats import GRPC_PATH
from service.grpc.http2 import frames

_CREDIT = struct.pack(">I", 2**30)


class Calls:
    """A gRPC connection from frames; what the server sends is read only by `read`."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.socket.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0, b""))
        self.number = -1
        self.closed = False
        self._reader = frames.FrameReader(frames.LARGEST_FRAME, 2**22)
        self._reader.preface_received = True

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def headers(self, path: str = GRPC_PATH, **metadata: str) -> bytes:
        """The HEADERS of a new call."""
        self.number += 2
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path)]
        fields += [(":authority", "localhost"), ("te", "trailers")]
        fields += [("content-type", "application/grpc")]
        fields += [(name.replace("_", "-"), value) for name, value in metadata.items()]
        return frame(frames.HEADERS, frames.END_HEADERS, self.number, header_block(fields))

    def data(self, content: bytes, *, end: bool = True) -> bytes:
        """DATA of the newest call."""
        parts = [
            content[start : start + frames.DEFAULT_FRAME]
            for start in range(0, len(content), frames.DEFAULT_FRAME)
        ]
        return b"".join(
            frame(frames.DATA, frames.END_STREAM * (end and part is parts[-1]), self.number, part)
            for part in parts
        )

    def send_slowly(self, headers: bytes, content: bytes) -> None:
        """Send one whole call within the server's windows."""
        windows = Windows([self.number])
        self.socket.sendall(headers)
        position = 0
        while position < len(content):
            size = windows.take(self.number, len(content) - position)
            if size > 0:
                part = content[position : position + size]
                position += size
                last = frames.END_STREAM * (position == len(content))
                self.socket.sendall(frame(frames.DATA, last, self.number, part))
            else:
                for kind, _, number, payload in self.frames():
                    windows.update(kind, number, payload)
                if self.closed:
                    raise ConnectionResetError

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that the server has sent; sets `closed` at the connection's end."""
        received = self.socket.recv(MB)
        self.closed = not received
        return self._reader.frames(received)

    def read(self, counts: Counter[str], seconds: float = 0.0) -> bool:
        """Count the ends of calls that arrive within this time; False at the connection's end."""
        end = time.monotonic() + seconds
        while selected([self.socket], [], max(0.0, end - time.monotonic()))[0]:
            for kind, flags, _, payload in self.frames():
                if kind == frames.HEADERS and flags & frames.END_STREAM:
                    counts[grpc_status(payload)] += 1
                elif kind in (frames.GOAWAY, frames.RST_STREAM):
                    counts["GOAWAY" if kind == frames.GOAWAY else "RST_STREAM"] += 1
            if self.closed:
                counts["closed"] += 1
                return False
        return True


class Windows:
    """What the server lets a client send: on the connection and on each stream, in bytes."""

    def __init__(self, streams: Sequence[int]) -> None:
        self.connection = frames.DEFAULT_WINDOW
        self.streams = dict.fromkeys(streams, frames.DEFAULT_WINDOW)

    def take(self, number: int, at_most: int) -> int:
        """Use up to this many bytes for one frame; how many it may have."""
        size = min(self.connection, self.streams[number], at_most, frames.DEFAULT_FRAME)
        if size > 0:
            self.connection -= size
            self.streams[number] -= size
        return size

    def update(self, kind: int, number: int, payload: bytes) -> None:
        """Apply a frame of the server."""
        if kind == frames.WINDOW_UPDATE:
            credit = struct.unpack(">I", payload)[0]
            if number == 0:
                self.connection += credit
            elif number in self.streams:
                self.streams[number] += credit
        elif kind == frames.SETTINGS:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == frames.INITIAL_WINDOW_SIZE:
                    for each in self.streams:
                        self.streams[each] += value - frames.DEFAULT_WINDOW
