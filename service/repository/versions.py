"""Lists the models and versions in the repository folder, as they are at this moment.

The layout is Triton's: NAME/VERSION/model.onnx, where VERSION is a whole number without leading
zeros. Any other folder (`.tmp-...`, for one) is ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

MODEL_FILE = "model.onnx"
CARD_FILE = "model.json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

Signature = tuple[int, int, int]


class VersionOnDisk(NamedTuple):
    """A version in the repository folder.

    `signature` is inode, size and modification time (ns) of model.onnx: it changes whenever the
    file is replaced.
    """

    name: str
    number: int
    folder: Path
    signature: Signature


def parse_version(text: str) -> int | None:
    """The number of a version, or None if the text is not a version's decimal name."""
    return int(text) if _VERSION.fullmatch(text) else None


def scan(root: Path) -> dict[str, list[VersionOnDisk]]:
    """The versions of each model, newest first. Raises OSError if `root` cannot be listed."""
    models: dict[str, list[VersionOnDisk]] = {}
    for model in sorted(root.iterdir()):
        if model.name.startswith(".") or not model.is_dir():
            continue
        versions = []
        for folder in model.iterdir():
            number = parse_version(folder.name)
            if number is None:
                continue
            try:
                status = (folder / MODEL_FILE).stat()
            except OSError:
                continue  # it holds no model, or was removed just now
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            versions.append(
                VersionOnDisk(name=model.name, number=number, folder=folder, signature=signature)
            )
        if versions:
            models[model.name] = sorted(versions, key=lambda v: v.number, reverse=True)
    return models


def open_regular(path: Path) -> BufferedReader:
    """Open a file of a version for reading.

    Raises OSError, also if it is a pipe or a device: those may block, or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises what `open_regular` raises."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
