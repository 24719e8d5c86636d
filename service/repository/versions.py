"""Lists the models and versions in the repository folder, as they are at this moment.

The layout is Triton's: NAME/VERSION/model.onnx, where VERSION is a whole number without leading
zeros, and NAME/config.pbtxt may name another file. Any other folder (`.tmp-...`, for one) is
ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from service.repository.triton_config import TritonConfig, TritonConfigs

MODEL_FILE = "model.onnx"
CARD_FILE = "model.json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

Signature = tuple[int, ...]


class VersionOnDisk(NamedTuple):
    """A version in the repository folder.

    `file` is the model's, usually model.onnx. `signature` holds its inode, size and modification
    time (ns), and those of the files of `config`: it changes whenever one of them is replaced.
    """

    name: str
    number: int
    folder: Path
    file: Path
    signature: Signature
    config: TritonConfig


def parse_version(text: str) -> int | None:
    """The number of a version, or None if the text is not a version's decimal name."""
    return int(text) if _VERSION.fullmatch(text) else None


def scan(root: Path, configs: TritonConfigs) -> dict[str, list[VersionOnDisk]]:
    """The versions of each model, newest first. Raises OSError if `root` cannot be listed."""
    models: dict[str, list[VersionOnDisk]] = {}
    for model in sorted(root.iterdir()):
        if model.name.startswith(".") or not model.is_dir():
            continue
        config, config_signature = configs.of(model)
        versions = []
        for folder in model.iterdir():
            number = parse_version(folder.name)
            if number is None:
                continue
            try:
                status = (folder / config.model_file).stat()
            except OSError:
                continue  # it holds no model, or was removed just now
            versions.append(
                VersionOnDisk(
                    name=model.name,
                    number=number,
                    folder=folder,
                    file=folder / config.model_file,
                    signature=(
                        *(status.st_ino, status.st_size, status.st_mtime_ns),
                        *config_signature,
                    ),
                    config=config,
                )
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
