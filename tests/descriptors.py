"""A process with few free file descriptors: the real limit, lowered for a while."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave this process no more than `count` free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Whatever earlier tests have left open, there is room for `count` above it.
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
