"""A transport that takes everything, for harnesses of connections."""

from __future__ import annotations

from typing import Any


class Transport:
    """What asyncio gives a protocol; `output` is what that has sent."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.output = b""
        self.has_ended = False
        self.is_paused = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "127.0.0.1", 1

    def write(self, data: bytes) -> None:
        assert not self.has_ended
        self.output += data

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        self.has_ended = True

    def abort(self) -> None:
        self.has_ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
