"""The model card: the fields of model.json, beside model.onnx. Optional for foreign models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from service.core.digits import LOGITS, PROBABILITIES
from service.core.errors import ModelLoadError
from service.repository.versions import open_regular

_MAX_BYTES = 16 * 1024 * 1024  # the labels of a million classes fit


class Card(NamedTuple):
    """The fields that the server uses.

    `sha256` of model.onnx, checked before loading; `output_kinds` says whether an output holds
    logits or probabilities, and an output with either word as its name needs no entry; `labels`
    are the names of the classes; `batching` says whether the model is row-wise, so that requests
    may be joined and split; None leaves it open.
    """

    sha256: str = ""
    output_kinds: Mapping[str, str] = MappingProxyType({})
    labels: Sequence[str] = ()
    batching: bool | None = None

    def kind(self, output: str) -> str:
        """`logits`, `probabilities`, or empty for an output of unknown kind."""
        return self.output_kinds.get(output, output if output in (PROBABILITIES, LOGITS) else "")


def content(path: Path) -> bytes:
    """The file of a card. Raises OSError, also if it has more than 16 MB."""
    with open_regular(path) as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise OSError(f"it has more than {_MAX_BYTES} bytes")
    return text


def read(path: Path) -> Card:
    """Read a card; a missing file is an empty card. Raises ModelLoadError for a damaged one."""
    try:
        text = content(path).decode()
    except FileNotFoundError:
        return Card()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long, a list too deep
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelLoadError(f"{path} must hold a JSON object")
    sha256, kinds = fields.get("sha256", ""), fields.get("output_kinds", {})
    if not isinstance(sha256, str):
        raise ModelLoadError(f"{path}: sha256 must be a string")
    if not isinstance(kinds, dict) or any(
        kind not in (PROBABILITIES, LOGITS) for kind in kinds.values()
    ):
        raise ModelLoadError(
            f"{path}: output_kinds must map names of outputs to '{LOGITS}' or '{PROBABILITIES}'"
        )
    labels = fields.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelLoadError(f"{path}: labels must be a list of strings")
    batching = fields.get("batching")
    if "batching" in fields and not isinstance(batching, bool):
        raise ModelLoadError(f"{path}: batching must be true or false")
    return Card(sha256=sha256, output_kinds=kinds, labels=tuple(labels), batching=batching)
