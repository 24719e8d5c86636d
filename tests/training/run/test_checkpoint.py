"""Checkpoint files."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import CheckpointError
from training.run import checkpoint


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"no checkpoint", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            checkpoint.read(path)
