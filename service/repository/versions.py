"""Which models and versions the repository folder holds, as it is at this moment.

The layout is Triton's: NAME/VERSION/model.onnx, where VERSION is a whole number without leading
zero; every other folder (`.tmp-...` among them) is not a version.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

MODEL_FILE = "model.onnx"
CARD_FILE = "model.json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class FoundVersion(NamedTuple):
    """A version on disk. `signature` changes whenever the model file is replaced."""

    name: str
    version: int
    folder: Path
    signature: tuple[int, int, int]


def parse_version(text: str) -> int | None:
    """The number in a version's decimal name, or None where it is not one."""
    return int(text) if _VERSION.fullmatch(text) else None


def scan(root: Path) -> dict[str, list[FoundVersion]]:
    """All versions of all models, newest first. Raises OSError if `root` cannot be listed."""
    found: dict[str, list[FoundVersion]] = {}
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
                continue  # no model in it, or it has just been removed
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            versions.append(FoundVersion(model.name, number, folder, signature))
        if versions:
            found[model.name] = sorted(versions, key=lambda v: v.version, reverse=True)
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
