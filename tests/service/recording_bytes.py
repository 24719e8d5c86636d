"""A body that knows in which thread it was parsed."""

from __future__ import annotations

import threading
from typing import Any


class RecordingBytes(bytes):
    """Bytes that record the thread in which their brackets are counted, just before parsing."""

    threads: set[int]

    def __new__(cls, content: bytes) -> RecordingBytes:
        """Copy the content."""
        self = super().__new__(cls, content)
        self.threads = set()
        return self

    def count(self, *arguments: Any) -> int:
        """Record the thread."""
        self.threads.add(threading.get_ident())
        return super().count(*arguments)
