from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.core.batching import Batching, QueueLimits
from service.core.classification.pictures import PictureRule
from service.core.errors import ModelLoadError
from service.core.tensors import TensorSpec
from service.repository.agreement import (
    declared_batching,
    ignored_by,
    labels_of,
    picture_rule,
    presented,
    unused_of,
)
from service.repository.card import Card
from service.repository.triton_config import TensorConfig, TritonConfig

IMAGES = TensorSpec("x", "FP32", (-1, 3, -1, -1))
UNRANKED = TensorSpec("x", "FP32", (-1,), has_rank=False)
SCORES = TensorSpec("y", "FP32", (-1, 10))


@pytest.mark.parametrize(
    ("card", "max_batch_size", "allowed", "reason", "max_rows"),
    [
        (True, None, True, "declared in model.json", sys.maxsize),
        (False, None, False, "off: declared in model.json", sys.maxsize),
        (None, 0, False, "off: max_batch_size is 0 in config.pbtxt", sys.maxsize),
        (None, 8, True, "declared in config.pbtxt", 8),
        (True, 8, True, "declared in config.pbtxt", 8),
        (False, 0, False, "off: max_batch_size is 0 in config.pbtxt", sys.maxsize),
    ],
)
def test_batching_is_what_card_or_config_declare(
    card: bool | None, max_batch_size: int | None, allowed: bool, reason: str, max_rows: int
) -> None:
    config = TritonConfig(max_batch_size=max_batch_size)
    batching = declared_batching(Card(batching=card), config)
    assert batching == Batching(allowed, reason, max_rows=max_rows)


def test_without_a_declaration_batching_is_open() -> None:
    assert declared_batching(Card(), TritonConfig()) is None


@pytest.mark.parametrize(("card", "size"), [(True, 0), (False, 8)])
def test_batching_that_card_and_config_declare_differently_is_a_contradiction(
    card: bool, size: int
) -> None:
    with pytest.raises(ModelLoadError, match=f"max_batch_size: {size}; remove one of them"):
        declared_batching(Card(batching=card), TritonConfig(max_batch_size=size))


def labels(folder: Path, card: Card, **files: str | bytes) -> Any:
    """The labels of outputs `y` and `z`, with a file of labels for those in `files`."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.txt").write_bytes(data)
    outputs = [TensorConfig(name, label_filename=f"{name}.txt") for name in files]
    specs = [SCORES, SCORES._replace(name="z")]
    return labels_of(card, TritonConfig(outputs=outputs), specs, folder)


def test_labels_come_from_a_file_or_from_the_card(tmp_path: Path) -> None:
    card = Card(output_kinds={"z": "logits"}, labels=("a", "b"))
    assert labels(tmp_path, Card()) == {}
    assert labels(tmp_path, card) == {"z": ("a", "b")}
    assert labels(tmp_path, card, y="no\r\nyes, é") == {"y": ("no", "yes, é"), "z": ("a", "b")}
    assert labels(tmp_path, card, z="a\nb\n") == {"z": ("a", "b")}
    odd = "a\fb\x1cc\u2028d"
    assert labels(tmp_path, Card(), y=f"{odd}\n\nz\r\n") == {"y": (odd, "", "z")}
    assert labels(tmp_path, Card(), y="") == {"y": ()}


def test_labels_that_cannot_be_read_or_contradict_the_card_are_an_error(tmp_path: Path) -> None:
    card = Card(output_kinds={"y": "logits"}, labels=("a", "b"))
    with pytest.raises(ModelLoadError, match=r"labels of 'y' in model.json .* remove one of them"):
        labels(tmp_path, card, y="a\nc\n")
    with pytest.raises(ModelLoadError, match="cannot read the labels of 'y'"):
        labels(tmp_path, Card(), y=b"\xff")
    assert len(labels(tmp_path, Card(), y="a\n" * 100_000)["y"]) == 100_000
    with pytest.raises(ModelLoadError, match="has more than 100000 labels"):
        labels(tmp_path, Card(), y="a\n" * 100_001)
    outputs = [TensorConfig("y", label_filename="none.txt")]
    with pytest.raises(ModelLoadError, match="cannot read the labels of 'y'"):
        labels_of(Card(), TritonConfig(outputs=outputs), [SCORES], tmp_path)


def test_the_labels_of_a_card_are_about_the_only_output(tmp_path: Path) -> None:
    card, spec = Card(labels=("a", "b")), SCORES._replace(shape=(-1, 2))
    assert labels_of(card, TritonConfig(), [spec], tmp_path) == {"y": ("a", "b")}
    (tmp_path / "y.txt").write_text("a\nc\n")
    config = TritonConfig(outputs=[TensorConfig("y", label_filename="y.txt")])
    with pytest.raises(ModelLoadError, match=r"labels of 'y' in model.json .* remove one of them"):
        labels_of(card, config, [spec], tmp_path)


def test_what_a_card_says_without_effect_is_told() -> None:
    outputs = [SCORES._replace(shape=(-1, 2)), SCORES._replace(name="z", shape=(-1, -1))]
    card = Card(labels=("a", "b", "c"), output_kinds={"none": "logits"})
    assert unused_of(card, {}, outputs) == [
        "output_kinds of 'none' (the model serves no such output)",
        "labels (output_kinds does not say which output has logits or probabilities)",
    ]
    labels = {"y": ("a", "b", "c"), "z": ("a",)}
    assert unused_of(Card(), labels, outputs) == ["some labels of 'y' (3 labels for 2 classes)"]
    assert unused_of(Card(), {"y": ("a", "b")}, outputs) == []
    for shape in ((-1, 1), (-1, 2, 1, 1), (-1, 2, 64, 64), (-1,)):
        spec = SCORES._replace(shape=shape)
        assert unused_of(Card(), {"y": ("a", "b")}, [spec]) == []


def test_labels_are_not_those_of_an_output_without_classes(tmp_path: Path) -> None:
    card = Card(labels=("a", "b"))
    for spec in (
        SCORES._replace(shape=(-1,)),
        SCORES._replace(shape=(-1, 3)),
        SCORES._replace(datatype="INT64"),
    ):
        assert labels_of(card, TritonConfig(), [spec], tmp_path) == {}


def test_labels_do_not_come_from_a_link_to_another_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("word")
    (folder / "y.txt").symlink_to(tmp_path / "secret")
    config = TritonConfig(outputs=[TensorConfig("y", label_filename="y.txt")])
    with pytest.raises(ModelLoadError, match="labels of 'y': it is a link that leads out of"):
        labels_of(Card(), config, [SCORES], folder)
    (tmp_path / "config.pbtxt").touch()
    (folder / "config.pbtxt").symlink_to(tmp_path / "config.pbtxt")
    assert labels_of(Card(), config, [SCORES], folder) == {"y": ("word",)}


@pytest.mark.parametrize(
    ("card", "order", "shape", "layout"),
    [
        ("", "FORMAT_NONE", (-1, 3, 3, 3), ""),
        ("NHWC", "FORMAT_NONE", (-1, 3, 3, 3), "NHWC"),
        ("", "FORMAT_NHWC", (-1, 3, 3, 3), "NHWC"),
        ("", "FORMAT_NCHW", (3, 3, 3), "CHW"),
        ("HWC", "FORMAT_NHWC", (3, 3, 3), "HWC"),
    ],
)
def test_the_layout_of_pictures_is_that_of_either_file(
    card: str, order: str, shape: tuple[int, ...], layout: str
) -> None:
    config = TritonConfig(inputs=[TensorConfig("x", format=order)])
    rule = picture_rule(
        Card(picture=PictureRule(layout=card)), config, [TensorSpec("x", "FP32", shape)]
    )
    assert rule == PictureRule(layout=layout)
    assert picture_rule(Card(), config, [IMAGES]) is None


def test_a_layout_that_card_and_config_have_differently_is_a_contradiction() -> None:
    config = TritonConfig(inputs=[TensorConfig("x", format="FORMAT_NCHW")])
    with pytest.raises(ModelLoadError, match=r"layout is NHWC, but format of 'x' .* FORMAT_NCHW"):
        picture_rule(Card(picture=PictureRule(layout="NHWC")), config, [IMAGES])


@pytest.mark.parametrize(
    ("declared", "spec", "size", "requests", "model"),
    [
        # Without dims, and with those of the model.
        (TensorConfig("x"), IMAGES, 8, IMAGES.shape, IMAGES.shape),
        (TensorConfig("x", dims=(3, -1, -1)), IMAGES, 8, IMAGES.shape, IMAGES.shape),
        (TensorConfig("x", dims=(-1, 3, -1, -1)), IMAGES, 0, IMAGES.shape, IMAGES.shape),
        # With max_batch_size absent, dims may be of either kind.
        (TensorConfig("x", dims=(3, -1, -1)), IMAGES, None, IMAGES.shape, IMAGES.shape),
        (TensorConfig("x", dims=(-1, 3, -1, -1)), IMAGES, None, IMAGES.shape, IMAGES.shape),
        # Sizes that the model leaves open, and one that the file does.
        (TensorConfig("x", dims=(3, 8, 8)), IMAGES, 8, (-1, 3, 8, 8), (-1, 3, 8, 8)),
        (TensorConfig("x", dims=(-1, 8, -1)), IMAGES, 8, (-1, 3, 8, -1), (-1, 3, 8, -1)),
        (
            TensorConfig("x", dims=(2, -1)),
            TensorSpec("x", "FP32", (4, 2, -1)),
            8,
            (4, 2, -1),
            (4, 2, -1),
        ),
        # Reshaped: a scalar per row, a scalar, one image without a batch, and two open sizes.
        (
            TensorConfig("x", dims=(1,), reshape=()),
            TensorSpec("x", "FP32", (-1,)),
            8,
            (-1, 1),
            (-1,),
        ),
        (TensorConfig("x", dims=(1,), reshape=()), TensorSpec("x", "FP32", ()), 0, (1,), ()),
        # A model that leaves the rank open.
        (TensorConfig("x", dims=(3, 4)), UNRANKED, 8, (-1, 3, 4), (-1, 3, 4)),
        (TensorConfig("x", dims=(4, 3)), UNRANKED, None, (4, 3), (4, 3)),
        (TensorConfig("x", dims=(1,), reshape=()), UNRANKED, 0, (1,), ()),
        (
            TensorConfig("x", dims=(3, 8, 8), reshape=(1, 3, 8, 8)),
            TensorSpec("x", "FP32", (1, 3, 8, 8)),
            0,
            (3, 8, 8),
            (1, 3, 8, 8),
        ),
        (
            TensorConfig("x", dims=(-1, -1), reshape=(-1, 1, -1)),
            TensorSpec("x", "FP32", (-1, -1, 1, 7)),
            4,
            (-1, -1, 7),
            (-1, -1, 1, 7),
        ),
        # An open size that the model fixes.
        (
            TensorConfig("x", dims=(1, -1), reshape=(-1,)),
            TensorSpec("x", "FP32", (-1, 4)),
            8,
            (-1, 1, 4),
            (-1, 4),
        ),
    ],
)
def test_a_tensor_is_presented_as_the_file_has_it(
    declared: TensorConfig,
    spec: TensorSpec,
    size: int | None,
    requests: tuple[int, ...],
    model: tuple[int, ...],
) -> None:
    (tensor,) = presented([declared], [spec], size, are_inputs=True)
    assert (tensor.position, tensor.spec.name, tensor.spec.datatype) == (0, "x", "FP32")
    assert tensor.spec.shape == requests
    assert tensor.shape == model


@pytest.mark.parametrize(
    ("declared", "size", "message"),
    [
        (TensorConfig("z"), 8, r"has an input 'z', but the inputs of the model are x$"),
        (TensorConfig("x", "INT64"), 8, "'x' has datatype INT64 in config.pbtxt, but FP32"),
        (TensorConfig("x", dims=(4, -1, -1)), 8, r"dims of 'x' .* \[4, -1, -1\], without the batc"),
        (TensorConfig("x", dims=(3, -1)), 8, r"its shape in the model is \[-1, 3, -1, -1\]"),
        (TensorConfig("x", dims=(3, -1, -1)), 0, r"are \[3, -1, -1\], but its shape"),
        (TensorConfig("x", dims=(3, 4), reshape=(12, 1)), 8, r"reshape of 'x' .* \[12, 1\]"),
    ],
)
def test_a_tensor_that_is_not_as_the_model_has_it_is_a_contradiction(
    declared: TensorConfig, size: int, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        presented([declared], [IMAGES], size, are_inputs=True)


def test_inputs_that_the_file_leaves_out_are_the_models_and_outputs_are_not_served() -> None:
    def names(declared: Sequence[TensorConfig], *, are_inputs: bool) -> list[tuple[int, str]]:
        specs = [SCORES, SCORES._replace(name="z")]
        tensors = presented(declared, specs, None, are_inputs=are_inputs)
        return [(tensor.position, tensor.spec.name) for tensor in tensors]

    both = [(0, "y"), (1, "z")]
    assert names([], are_inputs=True) == names([], are_inputs=False) == both
    assert names([TensorConfig("z")], are_inputs=True) == both
    assert names([TensorConfig("z")], are_inputs=False) == [(1, "z")]


class FakeSession:
    def __init__(self, batchable: bool) -> None:
        self.batchable = batchable
        self.batching = Batching(batchable, "off: the first dimension of 'x' is not open")
        self.inputs = (IMAGES, SCORES._replace(is_optional=True))
        self.defaults = (TensorSpec("z", "FP32", (1,), is_optional=True),)


def test_what_has_no_effect_on_this_model_is_named_with_the_reason() -> None:
    config = TritonConfig(
        max_batch_size=8,
        inputs=[
            TensorConfig("x", optional=True),
            TensorConfig("y", optional=True),
            TensorConfig("z", optional=True),
        ],
    )
    fixed: Any = FakeSession(batchable=False)
    assert ignored_by(fixed, config) == [
        "max_batch_size (the first dimension of 'x' is not open)",
        "optional of 'x' (the model needs it)",
    ]
    open_: Any = FakeSession(batchable=True)
    assert ignored_by(open_, config)[1:] == [
        "input 'z' (requests that are batched share its value in the model)"
    ]
    assert ignored_by(open_, TritonConfig(max_batch_size=8)) == []
    queue = QueueLimits(preferred_rows=(4,))
    assert ignored_by(open_, TritonConfig(queue=queue)) == [
        "dynamic_batching.preferred_batch_size (max_queue_delay_microseconds is 0)"
    ]
    assert ignored_by(open_, TritonConfig(queue=queue._replace(max_delay_s=0.1))) == []
    assert ignored_by(fixed, TritonConfig(max_batch_size=0)) == []
    fixed.inputs = (IMAGES._replace(shape=(4, 3, 8, 8)),)
    assert ignored_by(fixed, TritonConfig(max_batch_size=4)) == []
    assert len(ignored_by(fixed, TritonConfig(max_batch_size=8))) == 1
