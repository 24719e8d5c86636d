"""The pictures that a command line names: files, folders, patterns, lists of names, stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_client.images import IMAGE_BYTES, SUFFIXES, media_type_of

STDIN = "-"
KINDS = "PNG, JPEG, WebP, BMP or GIF"
_WILDCARDS = "*?["


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture (or the 784 pixels of an image) with its name, or why there is none."""

    name: str
    data: bytes = b""
    problem: str = ""


def names(arguments: Sequence[str]) -> Iterator[Entry | str]:
    """The names of all files, folders and patterns in order; an entry where there are none."""
    for argument in arguments:
        if argument == STDIN or not (Path(argument).is_dir() or _is_pattern(argument)):
            yield argument
        elif Path(argument).is_dir():
            yield from _below(argument)
        else:
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  absolute ones too
            for match in matches:
                if Path(match).is_dir():
                    yield from _below(match)
                else:
                    yield match
            if not matches:
                yield Entry(argument, problem="no file matches.")


def names_in(file: str) -> Iterator[str]:
    """The names in a file or on stdin, one per line. Raises OSError."""
    if file == STDIN:
        yield from _lines(sys.stdin.buffer)
    else:
        with Path(file).open("rb") as lines:
            yield from _lines(lines)


def _lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def entries(named: Iterable[Entry | str]) -> Iterator[Entry]:
    """Read each file when its turn comes. Stdin and .raw files may hold pixels of many images."""
    for name in named:
        if isinstance(name, Entry):
            yield name
            continue
        try:
            data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            yield Entry(name, problem=f"cannot be read: {reason}.")
            continue
        if media_type_of(data):
            yield Entry(name, data)
        elif (name == STDIN or name.endswith(".raw")) and data and not len(data) % IMAGE_BYTES:
            images = len(data) // IMAGE_BYTES
            for index in range(images):
                pixels = data[index * IMAGE_BYTES : (index + 1) * IMAGE_BYTES]
                yield Entry(f"{name}[{index}]" if images > 1 else name, pixels)
        else:
            yield Entry(name, problem=f"this is not a {KINDS} image.")


def _is_pattern(argument: str) -> bool:
    return any(character in argument for character in _WILDCARDS) and not Path(argument).exists()


def _below(folder: str) -> Iterator[Entry | str]:
    """All pictures in a folder and below it, by name; hidden ones are left out."""
    count = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                count += 1
                yield os.path.join(parent, file)  # noqa: PTH118  keeps the name as it was given
    if not count:
        yield Entry(folder, problem=f"the folder has no {KINDS} images.")
