from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.core.classification.pictures import PictureRule
from service.core.errors import ModelLoadError
from service.repository.card import Card, read


def card_of(folder: Path, content: Any) -> Card:
    path = folder / "model.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read(path)


def test_a_missing_card_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "model.json") == Card()


def test_the_fields_that_the_server_uses_are_read_and_others_ignored(tmp_path: Path) -> None:
    card = card_of(
        tmp_path,
        {
            "sha256": "ab",
            "output_kinds": {"scores": "logits"},
            "labels": ["zero", "one"],
            "batching": True,
            "accuracy": 0.99,
        },
    )
    assert card == Card(
        sha256="ab", output_kinds={"scores": "logits"}, labels=("zero", "one"), batching=True
    )


def test_a_card_without_batching_declares_nothing(tmp_path: Path) -> None:
    assert card_of(tmp_path, {}).batching is None
    assert card_of(tmp_path, {"batching": False}).batching is False


def test_what_pictures_become_is_read(tmp_path: Path) -> None:
    card = card_of(tmp_path, {"picture": {"size": [28, 32], "colour": "grey"}})
    assert card.picture == PictureRule(size=(28, 32), colour="grey")
    assert card_of(tmp_path, {"picture": None}).picture is None


def test_outputs_named_after_a_kind_need_no_entry() -> None:
    card = Card(output_kinds={"scores": "logits", "logits": "probabilities"})
    assert card.kind("scores") == "logits"
    assert card.kind("probabilities") == "probabilities"
    assert card.kind("logits") == "probabilities"  # an entry beats the name
    assert card.kind("hidden") == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{'sha256': ''}", "not valid JSON"),
        (b"\xff\xfe", "cannot read"),
        (b"null", "JSON object"),
        (b'"sha256"', "JSON object"),
        ({"sha256": None}, "sha256 must be a string"),
        ({"sha256": ["a"]}, "sha256 must be a string"),
        ({"output_kinds": "logits"}, "output_kinds must map"),
        ({"output_kinds": {"y": None}}, "output_kinds must map"),
        ({"output_kinds": {"y": "Logits"}}, "output_kinds must map"),
        ({"labels": "0123456789"}, "labels must be a list"),
        ({"labels": {"0": "zero"}}, "labels must be a list"),
        ({"labels": ["zero", 1]}, "labels must be a list"),
        ({"batching": None}, "batching must be true or false"),
        ({"batching": 1}, "batching must be true or false"),
        ({"batching": "true"}, "batching must be true or false"),
        ({"picture": "RGB"}, "picture must be an object"),
        ({"picture": {"size": 28}}, "picture.size must be"),
    ],
)
def test_a_damaged_card_is_refused_with_its_path(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason) as raised:
        card_of(tmp_path, content)
    assert str(tmp_path / "model.json") in raised.value.message


def test_a_folder_in_place_of_the_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_card_that_could_block_or_never_end_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        read(path)


def test_a_card_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.touch()
    os.truncate(path, 10**12)  # takes no space on the disk
    with pytest.raises(ModelLoadError, match="has more than 16777216 bytes"):
        read(path)
