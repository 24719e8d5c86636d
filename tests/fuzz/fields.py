"""Bytes as a source of choices, so that mutated bytes become well-formed but odd requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Fields:
    """Reads values from the front of some bytes; when they run out, every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """One byte as a number; 0 at the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def of(self, choices: Sequence[T]) -> T:
        """One of up to 256 choices."""
        return choices[self.byte() % len(choices)]

    def number(self) -> int:
        """A whole number, often small or at an edge of a type."""
        kind = self.byte()
        if kind < 128:
            return kind - 16
        if kind < 192:
            edge = 1 << self.byte() % 66
            return (kind % 2 * 2 - 1) * (edge + kind % 3 - 1)
        return int.from_bytes(self.take(kind % 9), "little", signed=True)

    def take(self, size: int) -> bytes:
        """The next bytes, `size` of them or what is left."""
        start = min(self._at, len(self._data))
        self._at = start + size
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """All bytes that are not read yet."""
        return self.take(max(self.left, 0))
