"""System shared memory: clients register regions, and then need not send the tensors in them.

Regions are read and written through their file descriptor rather than mapped. A client that
shrinks a mapped region kills the process that touches it (SIGBUS), and a client that writes to a
mapped region while the model reads it gets an answer to a mixture of two inputs. Reading costs one
copy in memory and avoids both.

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
    excerpt,
)
from service.core.request import RegionSlice

# The folder of glibc's shm_open (shm_overview(7)).
_FOLDER = Path("/dev/shm")  # noqa: S108 (where POSIX shared memory is)
_KEY = re.compile(r"/?(?!\.{1,2}$)[\w.-]{1,255}", re.ASCII)


class SharedRegion(NamedTuple):
    """A region of a shared memory object; offset and size in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


class SharedRegions:
    """The registered regions of one process, at most `limit`; 0 disables shared memory."""

    def __init__(self, limit: int, max_read_bytes: int) -> None:
        self._limit = limit
        self._max_read_bytes = max_read_bytes
        self._regions: dict[str, tuple[SharedRegion, int]] = {}  # name -> region, descriptor

    @property
    def enabled(self) -> bool:
        """Whether clients may register regions."""
        return self._limit > 0

    def register(self, region: SharedRegion) -> None:
        """Open the region's object and keep it open.

        Raises Forbidden if shared memory is off or the limit is reached, AlreadyExists if the name
        is taken, InvalidArgument if the object does not exist or is smaller than the region.
        """
        name, key = region.name, region.key
        if not self.enabled:
            raise Forbidden(
                "System shared memory is off; start the server with --shared-memory-regions N."
            )
        if name in self._regions:
            raise AlreadyExists.region(name)
        if len(self._regions) >= self._limit:
            raise Forbidden(
                f"{self._limit} regions are registered, and shared_memory_regions allows no more."
            )
        if not name or not _KEY.fullmatch(key):
            raise InvalidArgument("A region needs a name, and a key without slashes inside.")
        if region.offset < 0 or region.byte_size < 1:
            raise InvalidArgument(f"Region '{excerpt(name)}': offset or byte_size is out of range.")
        self._regions[name] = (region, _open(region))

    def unregister(self, name: str = "") -> None:
        """Unregister one region, or all; a name that is not registered is ignored."""
        for registered in [name] if name else list(self._regions):
            if registered in self._regions:
                _, descriptor = self._regions.pop(registered)
                os.close(descriptor)

    def status(self, name: str = "") -> list[SharedRegion]:
        """All regions, or the named one. Raises NotFound if it is not registered."""
        if name and name not in self._regions:
            raise NotFound(
                f"Unable to find system shared memory region: '{excerpt(name)}' is not registered."
            )
        return [region for region, _ in self._regions.values() if name in ("", region.name)]

    def read(self, field: str, part: RegionSlice) -> bytes:
        """Read a part of a region.

        Raises InvalidArgument if the region is not registered or too small, and RequestTooLarge;
        the messages name `field`.
        """
        if part.byte_size > self._max_read_bytes:
            raise RequestTooLarge(
                f"{field}: shared_memory_byte_size is over {self._max_read_bytes} bytes "
                "(max_request_bytes)."
            )
        descriptor, start = self._locate(field, part)
        content = os.pread(descriptor, part.byte_size, start)
        if len(content) != part.byte_size:
            raise InvalidArgument(f"{field}: region '{excerpt(part.name)}' has been made smaller.")
        return content

    def write(self, field: str, part: RegionSlice, content: bytes) -> RegionSlice:
        """Write `content` at the start of a part of a region; return the slice written.

        Raises InvalidArgument, naming `field`, if it does not fit or cannot be written.
        """
        descriptor, start = self._locate(field, part)
        if len(content) > part.byte_size:
            raise InvalidArgument(
                f"{field}: shared_memory_byte_size {part.byte_size} should be at least "
                f"{len(content)} bytes to hold the results."
            )
        if os.fstat(descriptor).st_size < start + len(content):
            raise InvalidArgument(f"{field}: region '{excerpt(part.name)}' has been made smaller.")
        try:
            written = os.pwrite(descriptor, content, start)
        except OSError as error:
            raise InvalidArgument(f"{field}: cannot be written: {error.strerror}.") from None
        if written != len(content):
            raise InvalidArgument(f"{field}: shared memory has no space left for it.")
        return part._replace(byte_size=len(content))

    def _locate(self, field: str, part: RegionSlice) -> tuple[int, int]:
        """The descriptor of the region's object, and the offset of the part in that object."""
        if part.name not in self._regions:
            raise InvalidArgument(
                f"{field}: Unable to find shared memory region: '{excerpt(part.name)}' is not "
                "registered."
            )
        region, descriptor = self._regions[part.name]
        if part.offset + part.byte_size > region.byte_size:
            size = " + byte size" if part.offset < region.byte_size else ""
            raise InvalidArgument(
                f"{field}: Invalid offset{size} for shared memory region: '{excerpt(part.name)}'; "
                f"{part.byte_size} bytes at offset {part.offset} are outside of its "
                f"{region.byte_size}."
            )
        return descriptor, region.offset + part.offset


def _open(region: SharedRegion) -> int:
    path = _FOLDER / region.key.lstrip("/")
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidArgument(
            f"Shared memory object '{excerpt(region.key)}' cannot be opened: {error.strerror}."
        ) from None
    status = os.fstat(descriptor)
    end = region.offset + region.byte_size
    if not stat.S_ISREG(status.st_mode) or status.st_size < end:
        os.close(descriptor)
        raise InvalidArgument(
            f"Region '{excerpt(region.name)}' would end at byte {end}, but shared memory object "
            f"'{excerpt(region.key)}' has {status.st_size} bytes."
        )
    return descriptor
