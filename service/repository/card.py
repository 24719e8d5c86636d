"""The model card: the fields of model.json, beside model.onnx. Optional for foreign models.

model_card.schema.json describes all fields, and docs/models.md repeats it. Errors quote it.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from service.core.classification.pictures import PictureError, PictureRule, rule_of
from service.core.datatypes import Array
from service.core.digits import LOGITS, PROBABILITIES
from service.core.errors import ModelLoadError, excerpt
from service.repository.json_schema import Schema, mistake
from service.repository.versions import open_inside

log = logging.getLogger(__name__)

SCHEMA_FILE = Path(__file__).with_name("model_card.schema.json")
_MAX_BYTES = 1024 * 1024  # GET .../card holds it outside max_inflight_bytes
_LIKE = 0.8  # of difflib's measure: a name that was meant to be another one


class Card(NamedTuple):
    """The fields that the server uses.

    `sha256` of the model's file, or `file_sha256` of every file, is checked before loading;
    `output_kinds` says whether an output holds logits or probabilities, and an output with either
    word as its name needs no entry; `labels` are the names of the classes; `batching` says whether
    the model is row-wise, so that requests may be joined and split; None leaves it open. `samples`
    are inputs of the warm-up, as objects; `picture` says what a picture becomes. `is_export` is
    whether mnist-train wrote the card, for the file that it exported and ran.
    """

    sha256: str = ""
    file_sha256: Mapping[str, str] = MappingProxyType({})
    output_kinds: Mapping[str, str] = MappingProxyType({})
    labels: Sequence[str] = ()
    batching: bool | None = None
    samples: Sequence[Mapping[str, Array]] = ()
    picture: PictureRule | None = None
    is_export: bool = False

    def kind(self, output: str) -> str:
        """`logits`, `probabilities`, or empty for an output of unknown kind."""
        return self.output_kinds.get(output, output if output in (PROBABILITIES, LOGITS) else "")

    def check_digests(self, file: str, digests: Mapping[str, str]) -> list[str]:
        """Check the SHA-256 of each file of a version; `file` is the model's.

        Returns the files that a card with a SHA-256 does not cover. Raises ModelLoadError if one is
        not what the card says.
        """
        expected = self.file_sha256 or ({file: self.sha256} if self.sha256 else {})
        for name, sha256 in expected.items():
            if name not in digests:
                raise ModelLoadError(f"its card has a SHA-256 of {excerpt(name)}, which is missing")
            if digests[name] != sha256:
                raise ModelLoadError(
                    f"{name} has SHA-256 {digests[name]}, but its card says {excerpt(sha256)}"
                )
        others = sorted(digests.keys() - expected.keys())
        if self.file_sha256 and others:
            raise ModelLoadError(f"its card has no SHA-256 of {others[0]}, but of other files")
        return others if self.sha256 else []


@cache
def schema() -> Schema:
    """The JSON Schema of a card."""
    fields: Schema = json.loads(SCHEMA_FILE.read_text())
    return fields


def content(path: Path, model_file: Path) -> bytes:
    """The file of a card.

    Raises OSError, also if it has more than 1 MiB, or is a link to another place than that of the
    model's file.
    """
    with open_inside(path, path.parent, model_file) as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise OSError(f"it has more than {_MAX_BYTES} bytes")
    return text


def _array(values: Any) -> Array:
    """Nested lists as an array of objects: one of texts would pad each to the longest.

    Raises ValueError if they are nested unevenly.
    """
    array = np.array(values, object)
    if any(isinstance(each, list) for each in array.flat):
        raise ValueError("uneven lists")
    return array


def read(path: Path, model_file: Path) -> Card:
    """Read the card of a model; a missing file is an empty card.

    Raises ModelLoadError for a damaged one, and for a link that `content` does not follow.
    A field whose name is almost that of a known one is logged; other unknown fields are ignored.
    """
    try:
        text = content(path, model_file).decode()
    except FileNotFoundError:
        return Card()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    try:
        fields: Any = json.loads(text)
        # An escape may be a lone surrogate, which no answer could hold.
        json.dumps(fields, ensure_ascii=False).encode()
        wrong = mistake(schema(), fields)
    except (ValueError, RecursionError) as error:  # a number may be too long, a list too deep
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if wrong:
        raise ModelLoadError(f"{path}{'' if wrong.startswith('must') else ':'} {wrong}")
    known = schema()["properties"]
    for name in fields.keys() - known.keys():
        if near := difflib.get_close_matches(name, known, n=1, cutoff=_LIKE):
            log.warning("%s: %s is not a known field; %s is.", path, excerpt(name), near[0])
        else:
            log.info("%s: %s is not a known field and has no effect.", path, excerpt(name))
    sha256 = fields.get("sha256", "")
    try:
        samples = [
            {name: _array(values) for name, values in sample.items()}
            for sample in fields.get("warm_up", ())
        ]
    except ValueError as error:
        raise ModelLoadError(f"{path}: warm_up has rows of different lengths") from error
    try:
        picture = None if fields.get("picture") is None else rule_of(fields["picture"])
    except PictureError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    return Card(
        sha256=sha256 if isinstance(sha256, str) else "",
        file_sha256=sha256 if isinstance(sha256, dict) else MappingProxyType({}),
        output_kinds=fields.get("output_kinds", {}),
        labels=tuple(fields.get("labels", ())),
        batching=fields.get("batching"),
        samples=tuple(samples),
        picture=picture,
        # What every card of mnist-train has. Its SHA-256 is checked before the model is loaded.
        is_export=isinstance(sha256, str)
        and bool(sha256)
        and fields.get("schema") == 1
        and isinstance(fields.get("recipe"), dict)
        and isinstance(fields.get("versions"), dict),
    )
