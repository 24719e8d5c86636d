"""System shared memory: regions that callers register, so that tensors need not be sent.

Regions are read and written through their file descriptor rather than mapped. A mapped region
whose owner makes it smaller kills the process that touches it (SIGBUS), and one that is being
written while the model reads it gives an answer to no question; a read costs one copy in memory
and has neither trouble.

Source: Triton's "System-Shared-Memory Extension".
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from service.core.errors import (
    AlreadyExists,
    Forbidden,
    InvalidArgument,
    NotFound,
    RequestTooLarge,
)
from service.core.request import Region

# Where glibc's shm_open has its objects (shm_overview(7)).
_FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?(?!\.{1,2}$)[\w.-]{1,255}", re.ASCII)


class Registered(NamedTuple):
    """A region of a shared memory object; offset and size in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


class Regions:
    """The registered regions of one process, at most `limit`; 0 switches shared memory off."""

    def __init__(self, limit: int, max_read_bytes: int) -> None:
        self._limit = limit
        self._max_read_bytes = max_read_bytes
        self._regions: dict[str, tuple[Registered, int]] = {}

    @property
    def enabled(self) -> bool:
        """Whether callers may register regions."""
        return self._limit > 0

    def register(self, region: Registered) -> None:
        """Open the region's object and keep it open.

        Raises Forbidden if shared memory is off or the limit is reached, AlreadyExists if the name
        is taken, InvalidArgument if there is no such object or it is smaller than the region.
        """
        name, key = region.name, region.key
        if not self.enabled:
            raise Forbidden(
                "System shared memory is off; start the server with --shared-memory-regions N."
            )
        if name in self._regions:
            raise AlreadyExists(f"Shared memory region '{name}' is already registered.")
        if len(self._regions) >= self._limit:
            raise Forbidden(f"{self._limit} regions are registered (shared_memory_regions).")
        if not name or not _KEY.fullmatch(key):
            raise InvalidArgument("A region needs a name, and a key without slashes inside.")
        if region.offset < 0 or region.byte_size < 1:
            raise InvalidArgument(f"Region '{name}': offset or byte_size is out of range.")
        self._regions[name] = (region, _open(region))

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; one that is not registered is forgotten already."""
        for known in [name] if name else list(self._regions):
            if known in self._regions:
                _, descriptor = self._regions.pop(known)
                os.close(descriptor)

    def status(self, name: str = "") -> list[Registered]:
        """All regions, or that one. Raises NotFound if it is not registered."""
        if name and name not in self._regions:
            raise NotFound(f"Shared memory region '{name}' is not registered.")
        return [region for region, _ in self._regions.values() if name in ("", region.name)]

    def read(self, field: str, region: Region) -> bytes:
        """The bytes of a part of a region. Raises InvalidArgument, naming `field`."""
        if region.byte_size > self._max_read_bytes:
            raise RequestTooLarge(
                f"{field}: shared_memory_byte_size is over {self._max_read_bytes} bytes "
                "(max_request_bytes)."
            )
        descriptor, start = self._locate(field, region)
        content = os.pread(descriptor, region.byte_size, start)
        if len(content) != region.byte_size:
            raise InvalidArgument(f"{field}: region '{region.name}' has been made smaller.")
        return content

    def write(self, field: str, region: Region, content: bytes) -> Region:
        """Write to a part of a region; the part that was written. Raises InvalidArgument."""
        descriptor, start = self._locate(field, region)
        if len(content) > region.byte_size:
            raise InvalidArgument(
                f"{field}: its {len(content)} bytes do not fit into shared_memory_byte_size "
                f"{region.byte_size}."
            )
        if os.fstat(descriptor).st_size < start + len(content):
            raise InvalidArgument(f"{field}: region '{region.name}' has been made smaller.")
        try:
            written = os.pwrite(descriptor, content, start)
        except OSError as error:
            raise InvalidArgument(f"{field}: cannot be written: {error.strerror}.") from None
        if written != len(content):
            raise InvalidArgument(f"{field}: there is no room for it in shared memory.")
        return region._replace(byte_size=len(content))

    def _locate(self, field: str, region: Region) -> tuple[int, int]:
        """The descriptor of the region's object, and where in it this part begins."""
        if region.name not in self._regions:
            raise InvalidArgument(
                f"{field}: shared memory region '{region.name}' is not registered."
            )
        registered, descriptor = self._regions[region.name]
        if region.offset + region.byte_size > registered.byte_size:
            raise InvalidArgument(
                f"{field}: {region.byte_size} bytes at offset {region.offset} are outside of "
                f"region '{region.name}' of {registered.byte_size} bytes."
            )
        return descriptor, registered.offset + region.offset


def _open(region: Registered) -> int:
    path = _FOLDER / region.key.lstrip("/")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidArgument(
            f"Shared memory object '{region.key}' cannot be opened: {error.strerror}."
        ) from None
    found = os.fstat(descriptor)
    end = region.offset + region.byte_size
    if not stat.S_ISREG(found.st_mode) or found.st_size < end:
        os.close(descriptor)
        raise InvalidArgument(
            f"Region '{region.name}' would end at byte {end}, but shared memory object "
            f"'{region.key}' has {found.st_size} bytes."
        )
    return descriptor
