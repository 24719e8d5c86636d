"""The pictures that a command line names: files, folders, patterns, lists of names, stdin."""

from __future__ import annotations

import errno
import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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
        if argument == STDIN or not (_is_folder(argument) or _is_pattern(argument)):
            yield argument
        elif _is_folder(argument):
            yield from _below(argument)
        else:
            matches = _matches(argument)
            for match in matches:
                if _is_folder(match):
                    yield from _below(match)
                else:
                    yield match
            if not matches:
                yield Entry(argument, problem="no file matches.")


def names_in(file: str) -> Iterator[str]:
    """The names in a file or on stdin, one per line. Raises OSError."""
    if file == STDIN:
        yield from _lines(_stdin())
    else:
        with Path(file).open("rb") as lines:
            yield from _lines(lines)


def _lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def holds_many(name: str) -> bool:
    """Whether a file of this name may hold the pixels of many images."""
    return name == STDIN or name.endswith(".raw")


def entries(named: Iterable[Entry | str]) -> Iterator[Entry]:
    """Read each file when its turn comes. Stdin and .raw files may hold pixels of many images."""
    for name in named:
        if isinstance(name, Entry):
            yield name
            continue
        try:
            data = _stdin().read() if name == STDIN else Path(name).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            yield Entry(name, problem=f"cannot be read: {reason}.")
            continue
        if media_type_of(data):
            yield Entry(name, data)
        elif holds_many(name) and data and not len(data) % IMAGE_BYTES:
            images = len(data) // IMAGE_BYTES
            for index in range(images):
                pixels = data[index * IMAGE_BYTES : (index + 1) * IMAGE_BYTES]
                yield Entry(f"{name}[{index}]" if images > 1 else name, pixels)
        else:
            yield Entry(name, problem=f"this is not a {KINDS} image.")


def _stdin() -> BinaryIO:
    """Raises OSError if the shell has closed it."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
    return sys.stdin.buffer


def _is_folder(name: str) -> bool:
    return os.path.isdir(name)  # noqa: PTH112  Path's raises for a name that is too long


def _is_pipe(name: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)  # noqa: PTH116
    except OSError:  # reading it says why
        return False


def _is_pattern(argument: str) -> bool:
    is_file = os.path.lexists(argument)
    return any(character in argument for character in _WILDCARDS) and not is_file


def _matches(pattern: str) -> list[str]:
    """What matches a pattern, by name; hidden files and folders only if the pattern has some.

    "**" reaches the files of all folders below, so folders are left out of its matches.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))  # noqa: PTH207  absolute patterns too
    # That of glob follows links to folders, around any loop.
    anchor = Path(pattern).anchor
    rest = f"{pattern[len(anchor) :]}/*" if parts[-1] == "**" else pattern[len(anchor) :]
    matches = sorted(path for path in Path(anchor).glob(rest) if not path.is_dir())
    if not any(part.startswith(".") and part != ".." for part in parts):
        matches = [path for path in matches if not _is_hidden(path)]
    return [str(path) for path in matches]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def _below(folder: str) -> Iterator[Entry | str]:
    """All pictures in a folder and below it, by name; hidden ones are left out."""
    count = 0
    failures: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=failures.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            name = os.path.join(parent, file)  # noqa: PTH118  keeps the name as it was given
            # Reading a pipe waits until something writes to it.
            if file.lower().endswith(SUFFIXES) and not file.startswith(".") and not _is_pipe(name):
                count += 1
                yield name
    for failure in failures:
        yield Entry(str(failure.filename), problem=f"cannot be read: {failure.strerror}.")
    if not count and not failures:
        yield Entry(folder, problem=f"the folder has no {KINDS} images.")
