"""The model repository that the service reads: NAME/VERSION/ with a model file and its card."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import ExportError
from training.files import sync_folder, write_atomically

MODEL_FILE, CARD_FILE = "model.onnx", "model.json"


def publish(repository: Path, name: str, model: bytes, card: Mapping[str, Any]) -> Path:
    """Publish a model file and its card as the next version: repository/name/<version>/.

    The folder appears by one rename, complete, and never replaces another version.
    Raises ExportError if it cannot be written.
    """
    folder = repository / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
        try:
            temporary.chmod(0o755)  # mkdtemp's own mode is private
            write_atomically(temporary / MODEL_FILE, model)
            signed = {**card, "sha256": hashlib.sha256(model).hexdigest()}
            write_atomically(temporary / CARD_FILE, json.dumps(signed, indent=2).encode() + b"\n")
            return _rename_to_next(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(
            f"The model cannot be published in {folder}: {error.strerror}. The run folder has its "
            "checkpoint; publish that with mnist-train --from-checkpoint and another --models."
        ) from error


def newest_version(repository: Path, name: str) -> Path | None:
    """Return the folder of the newest published version of a model, or None."""
    models = (repository / name).glob(f"*/{MODEL_FILE}")
    versions = [path.parent for path in models if path.parent.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _rename_to_next(temporary: Path, folder: Path) -> Path:
    while True:
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        target = folder / str(max(taken, default=0) + 1)
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue  # another publisher took that number
            raise
        sync_folder(folder)
        return target
