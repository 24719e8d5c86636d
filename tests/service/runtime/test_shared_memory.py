from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.core.errors import (
    AlreadyExists,
    Forbidden,
    InvalidArgument,
    NotFound,
    RequestTooLarge,
)
from service.core.request import RegionSlice
from service.runtime import shared_memory
from service.runtime.shared_memory import SharedRegion, SharedRegions

SIZE = 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm, with an object `k` of the bytes 0 to 63."""
    objects = tmp_path / "shm"
    objects.mkdir()
    (objects / "k").write_bytes(bytes(range(SIZE)))
    monkeypatch.setattr(shared_memory, "_FOLDER", objects)
    return objects


@pytest.fixture
def regions(folder: Path) -> Iterator[SharedRegions]:
    """Up to three regions; the region `r`, bytes 8 to 39 of `k`, is registered."""
    registered = SharedRegions(limit=3, max_read_bytes=1000)
    registered.register(SharedRegion(name="r", key="/k", offset=8, byte_size=32))
    yield registered
    registered.unregister()


def region(name: str = "x", key: str = "/k", offset: int = 0, byte_size: int = 1) -> SharedRegion:
    return SharedRegion(name=name, key=key, offset=offset, byte_size=byte_size)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (it lists itself as well, always)


def test_a_slice_is_read_at_its_offset_in_the_region(regions: SharedRegions) -> None:
    assert regions.read("x", RegionSlice("r", 0, 4)) == bytes([8, 9, 10, 11])
    assert regions.read("x", RegionSlice("r", 30, 2)) == bytes([38, 39])


def test_a_write_changes_only_its_bytes_and_returns_them(
    regions: SharedRegions, folder: Path
) -> None:
    assert regions.write("y", RegionSlice("r", 1, 10), b"abc") == RegionSlice("r", 1, 3)
    content = bytearray(range(SIZE))
    content[9:12] = b"abc"
    assert (folder / "k").read_bytes() == content


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        (RegionSlice("none", 0, 1), InvalidArgument, "'none' is not registered"),
        (
            RegionSlice("r", 0, 33),
            InvalidArgument,
            r"offset \+ byte size .*'r'; .* outside of its 32",
        ),
        (RegionSlice("r", 32, 1), InvalidArgument, "outside"),
        (RegionSlice("r", 1 << 70, 1), InvalidArgument, "outside"),
        (RegionSlice("r", 0, 1001), RequestTooLarge, "max_request_bytes"),
        (RegionSlice("r", 0, 1 << 70), RequestTooLarge, "max_request_bytes"),
    ],
)
def test_a_slice_outside_of_the_region_is_not_read(
    regions: SharedRegions, part: RegionSlice, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        regions.read("Input 'x'", part)
    assert str(raised.value).startswith("Input 'x': ")


@pytest.mark.parametrize(
    ("part", "size", "words"),
    [
        (RegionSlice("none", 0, 8), 1, "not registered"),
        (RegionSlice("r", 28, 8), 1, "outside"),
        (RegionSlice("r", 0, 8), 9, "shared_memory_byte_size 8 should be at least 9 bytes to hold"),
    ],
)
def test_a_write_that_does_not_fit_writes_nothing(
    regions: SharedRegions, folder: Path, part: RegionSlice, size: int, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        regions.write("Output 'y'", part, bytes(size))
    assert (folder / "k").read_bytes() == bytes(range(SIZE))


@pytest.mark.parametrize("length", [0, 8, 11])
def test_an_object_that_its_owner_shrinks_is_an_error_and_is_not_grown_again(
    regions: SharedRegions, folder: Path, length: int
) -> None:
    os.truncate(folder / "k", length)
    with pytest.raises(InvalidArgument, match="made smaller"):
        regions.read("x", RegionSlice("r", 0, 4))
    with pytest.raises(InvalidArgument, match="made smaller"):
        regions.write("y", RegionSlice("r", 0, 4), b"abcd")
    assert (folder / "k").stat().st_size == length


def test_an_object_that_is_unlinked_stays_readable(regions: SharedRegions, folder: Path) -> None:
    (folder / "k").unlink()
    assert regions.read("x", RegionSlice("r", 0, 1)) == b"\x08"
    with pytest.raises(InvalidArgument, match="cannot be opened"):
        regions.register(region())


@pytest.mark.parametrize(
    "key",
    ["", "/", "//k", "a/b", "../k", "/../k", ".", "..", "/..", "k\x00", "k\n", "ключ", "k" * 256],
)
def test_a_key_that_leaves_the_folder_of_shared_memory_is_refused(
    regions: SharedRegions, key: str
) -> None:
    with pytest.raises(InvalidArgument, match="a key without slashes"):
        regions.register(region(key=key))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "socket"])
def test_whatever_is_not_a_plain_object_is_refused_and_closed(
    regions: SharedRegions, folder: Path, kind: str
) -> None:
    path = folder / "trap"
    if kind == "link":
        (folder.parent / "secret").write_bytes(bytes(SIZE))
        path.symlink_to(folder.parent / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    before = open_descriptors()
    with pytest.raises(InvalidArgument):
        regions.register(region(key="trap"))
    assert open_descriptors() == before
    assert [r.name for r in regions.status()] == ["r"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (region(name=""), "needs a name"),
        (region(offset=-1), "out of range"),
        (region(byte_size=0), "out of range"),
        (region(byte_size=-5), "out of range"),
        (region(byte_size=SIZE + 1), f"would end at byte {SIZE + 1}"),
        (region(offset=SIZE), "has 64 bytes"),
        (region(offset=1 << 70, byte_size=1 << 70), "has 64 bytes"),
        (region(key="none"), "cannot be opened: No such file"),
    ],
)
def test_a_region_that_its_object_cannot_hold_is_refused(
    regions: SharedRegions, bad: SharedRegion, words: str
) -> None:
    before = open_descriptors()
    with pytest.raises(InvalidArgument, match=words):
        regions.register(bad)
    assert open_descriptors() == before


def test_names_are_unique_and_their_number_is_limited(regions: SharedRegions) -> None:
    with pytest.raises(AlreadyExists, match="'r' already in manager"):
        regions.register(region("r"))
    regions.register(region("s"))
    regions.register(region("t"))
    with pytest.raises(Forbidden, match="shared_memory_regions"):
        regions.register(region("u"))
    regions.unregister("s")
    regions.register(region("u"))
    assert [r.name for r in regions.status()] == ["r", "t", "u"]


def test_unregistering_closes_the_objects(regions: SharedRegions) -> None:
    before = open_descriptors()
    regions.register(region("s"))
    regions.unregister("none")
    assert open_descriptors() == before + 1
    regions.unregister()
    regions.unregister()
    assert open_descriptors() == before - 1
    assert regions.status() == []


def test_the_status_of_one_region_needs_its_name(regions: SharedRegions) -> None:
    assert regions.status("r") == [SharedRegion(name="r", key="/k", offset=8, byte_size=32)]
    with pytest.raises(NotFound, match="'s' is not registered"):
        regions.status("s")


def test_no_region_can_be_registered_while_shared_memory_is_off(folder: Path) -> None:
    off = SharedRegions(limit=0, max_read_bytes=1000)
    assert not off.enabled
    with pytest.raises(Forbidden, match="--shared-memory-regions"):
        off.register(region())
