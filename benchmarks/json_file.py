"""Writes results so that an interrupted run leaves a whole file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_json(path: Path, results: DataclassInstance) -> None:
    """Replace the file at once, with the fields of a dataclass as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
