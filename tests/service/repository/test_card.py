from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from service.core.classification.pictures import PictureRule
from service.core.errors import ModelLoadError
from service.repository.card import SCHEMA_FILE, Card, read, schema
from service.repository.json_schema import mistake
from service.repository.versions import MODEL_FILE
from tests.conftest import ROOT, SHIPPED_MODELS


def card_of(folder: Path, content: Any) -> Card:
    path = folder / "model.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read(path, path.with_name(MODEL_FILE))


def test_a_missing_card_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "model.json", tmp_path / MODEL_FILE) == Card()


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
    card = card_of(tmp_path, {"picture": {"size": [28.0, 32], "colour": "grey"}})
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
        (b'{"labels": ["a", "\\ud800"]}', "not valid JSON: .* surrogates not allowed"),
        (b'{"sha256": {"a\\ud800": "x"}}', "not valid JSON: .* surrogates not allowed"),
        (b"null", "JSON object"),
        (b'"sha256"', "JSON object"),
        ({"sha256": None}, "sha256 must be a string"),
        ({"sha256": ["a"]}, "sha256 must be a string"),
        ({"sha256": {"model.onnx": 1}}, "sha256 must be a string, .* or an object"),
        ({"warm_up": {"x": [1]}}, "warm_up must be a list of objects"),
        ({"warm_up": [{"x": {"y": 1}}]}, "warm_up must be a list of objects"),
        ({"warm_up": [{"x": [[1, 2], [3]]}]}, "warm_up has rows of different lengths"),
        ({"schema": 2}, "schema must be 1"),
        ({"output_kinds": "logits"}, "output_kinds must map"),
        ({"output_kinds": {"y": None}}, "output_kinds must map"),
        ({"output_kinds": {"y": "Logits"}}, "output_kinds must map"),
        ({"labels": "0123456789"}, "labels must be a list"),
        ({"labels": {"0": "zero"}}, "labels must be a list"),
        ({"labels": ["zero", 1]}, "labels must be a list"),
        ({"batching": None}, "batching must be true or false"),
        ({"batching": 1}, "batching must be true or false"),
        ({"batching": "true"}, "batching must be true or false"),
        ({"picture": "RGB"}, "picture must be an object of size"),
        ({"picture": {"color": "RGB"}}, "picture must be an object of size, colour"),
        ({"picture": {"size": 224}}, r"picture.size must be \[height, width\]"),
        ({"picture": {"size": [224, 0]}}, "whole numbers from 1 to 2048"),
        ({"picture": {"size": [224, 2.5]}}, "picture.size must be"),
        ({"picture": {"colour": "CMYK"}}, "picture.colour must be grey, RGB or BGR"),
        ({"picture": {"layout": ["NCHW"]}}, "picture.layout must be NCHW"),
        ({"picture": {"scale": "1/255"}}, "picture.scale must be a number"),
        ({"picture": {"scale": True}}, "picture.scale must be a number"),
        ({"picture": {"mean": [0.5, None, 1]}}, "picture.mean must be a number, or a list"),
        ({"picture": {"std": 0}}, "std must not be 0"),
        ({"picture": {"mean": 10**400}}, "picture.mean has a number that is too large"),
        ({"picture": {"scale": 10**400}}, "picture.scale has a number that is too large"),
        ({"picture": {"resize": "squeeze"}}, "picture.resize must be crop, pad or stretch"),
        ({"picture": {"shorter_side": -1}}, "picture.shorter_side must be a whole number"),
        ({"picture": {"filter": "nearest"}}, "picture.filter must be bilinear"),
        ({"picture": {"fill": 256}}, "picture.fill must be a whole number from 0 to 255"),
    ],
)
def test_a_damaged_card_is_refused_with_its_path(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason) as raised:
        card_of(tmp_path, content)
    assert str(tmp_path / "model.json") in raised.value.message


def test_a_folder_in_place_of_the_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot read"):
        read(tmp_path, tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_card_that_could_block_or_never_end_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        read(path, path)


def test_a_card_that_is_a_link_is_where_the_model_is(tmp_path: Path) -> None:
    """A Kubernetes ConfigMap links each file like that."""
    store, folder = tmp_path / "store", tmp_path / "1"
    for place in (store, folder):
        place.mkdir()
    (store / "card").write_text('{"sha256": "secret"}')
    (store / MODEL_FILE).touch()
    (folder / "model.json").symlink_to(store / "card")
    with pytest.raises(ModelLoadError, match="a link that leads out of"):
        read(folder / "model.json", folder / MODEL_FILE)
    (folder / MODEL_FILE).symlink_to(store / MODEL_FILE)
    assert read(folder / "model.json", folder / MODEL_FILE).sha256 == "secret"


def test_a_card_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.touch()
    os.truncate(path, 10**12)  # takes no space on the disk
    with pytest.raises(ModelLoadError, match="has more than 1048576 bytes"):
        read(path, path)


def test_sha256_may_be_that_of_each_file() -> None:
    one, both = Card(sha256="a"), Card(file_sha256={"m": "a", "m.data": "b"})
    assert Card().check_digests("m", {"m": "a", "m.data": "b"}) == []
    assert one.check_digests("m", {"m": "a", "m.data": "b"}) == ["m.data"]
    assert both.check_digests("m", {"m": "a", "m.data": "b"}) == []
    for digests, reason in (
        ({"m": "b"}, "m has SHA-256 b, but its card says a"),
        ({"m": "a", "m.data": "c"}, "m.data has SHA-256 c, but its card says b"),
        ({"m": "a"}, "its card has a SHA-256 of m.data, which is missing"),
        ({"m": "a", "m.data": "b", "n": "c"}, "its card has no SHA-256 of n, but of other files"),
    ):
        with pytest.raises(ModelLoadError) as raised:
            both.check_digests("m", digests)
        assert raised.value.message == reason


def test_samples_of_the_warm_up_are_arrays(tmp_path: Path) -> None:
    card = card_of(
        tmp_path, b'{"warm_up": [{"x": [[1, NaN]], "s": ["a"], "n": 5}, {"x": [[null]]}]}'
    )
    first, second = card.samples
    assert np.array_equal(first["x"].astype(np.float32), [[1, np.nan]], equal_nan=True)
    assert first["s"].tolist() == ["a"]
    assert first["n"].shape == ()
    assert np.isnan(second["x"].astype(np.float32)).all()


def test_texts_of_the_warm_up_take_the_memory_of_their_own_lengths(tmp_path: Path) -> None:
    texts = ["b"] * 100_000 + ["a" * 100_000]  # 40 GB if each were as long as the longest
    (sample,) = card_of(tmp_path, {"warm_up": [{"x": texts}]}).samples
    assert sample["x"].nbytes < 10**6
    assert sample["x"].tolist() == texts


def test_a_name_that_is_almost_a_field_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        card_of(tmp_path, {"label": ["a"], "author": "me", "output_kind": {}})
    assert sorted(record.getMessage().split(": ")[1] for record in caplog.records) == [
        "label is not a known field; labels is.",
        "output_kind is not a known field; output_kinds is.",
    ]


def test_real_cards_fit_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    cards = [*SHIPPED_MODELS.glob("*/*/model.json")]
    assert cards
    for path in cards:
        fields = json.loads(path.read_text())
        validator.validate(fields)
        assert fields.keys() <= schema()["properties"].keys()
        assert read(path, path).sha256


def test_only_a_whole_card_of_mnist_train_with_its_digest_is_that_of_an_export(
    tmp_path: Path,
) -> None:
    for path in SHIPPED_MODELS.glob("*/*/model.json"):
        fields = json.loads(path.read_text())
        assert card_of(tmp_path, fields).is_export
        for name in ("sha256", "schema", "recipe", "versions"):
            assert not card_of(tmp_path, {k: v for k, v in fields.items() if k != name}).is_export
        assert not card_of(tmp_path, fields | {"sha256": {"model.onnx": "0"}}).is_export
    assert not card_of(tmp_path, {"sha256": "0", "batching": True}).is_export


def test_the_schema_and_the_reader_agree_on_what_is_wrong() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    values: list[Any] = [None, 1, 1.5, True, "a", [], ["a"], [1], {}, {"x": "logits"}, {"x": 1}]
    values += [[{"x": [[1, "a", None, True]]}], [{"x": {}}], [[1]], {"size": [28, 28]}]
    values += [{"size": [28]}, {"mean": [1, 2, 3], "resize": "pad"}, {"colour": "red"}]
    for name in schema()["properties"]:
        for value in values:
            assert validator.is_valid({name: value}) == (not mistake(schema(), {name: value}))


def test_every_field_is_documented() -> None:
    _, _, text = (ROOT / "docs" / "models.md").read_text().partition("## model.json, field by")
    text, _, _ = text.partition("\n## ")
    documented = re.findall(r"^\| `([a-z_0-9]+)` \| (.*?) \|", text, re.MULTILINE)
    fields = {name: each["description"] for name, each in schema()["properties"].items()}
    assert dict(documented) == fields
    assert SCHEMA_FILE.name in text


def test_a_picture_that_the_reader_takes_fits_the_schema(tmp_path: Path) -> None:
    fields: dict[str, Sequence[Any]] = {
        "size": ([28, 28], [1, 2048]),
        "colour": ("grey", "RGB", "BGR"),
        "layout": ("NCHW", "NHWC", "CHW", "HWC"),
        "scale": (1, -0.5),
        "mean": (0.5, [0.5], [0.1, 0.2, 0.3]),
        "std": (0.5, [1, 2, 3]),
        "resize": ("crop", "pad", "stretch"),
        "shorter_side": (256, 4096),
        "filter": ("bilinear", "bicubic", "lanczos", "box"),
        "fill": (0, 255),
    }
    assert fields.keys() == schema()["properties"]["picture"]["properties"].keys()
    for name, values in fields.items():
        for value in values:
            assert card_of(tmp_path, {"picture": {name: value}}).picture is not None
