"""Folders of images: both layouts, trained on for real, and what can be wrong with them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.runs import evaluation_of, train
from training.data.folder import load_image_folder
from training.data.mnist import load_mnist
from training.errors import DataError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    mnist = load_mnist()
    return mnist.test_images[:300].numpy(), mnist.test_labels[:300].numpy()


def write_numbered(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(images):
        suffix = "jpg" if index % 2 else "png"
        Image.fromarray(pixels).save(folder / f"img_{index}.{suffix}")
    np.save(folder / "labels.npy", labels)
    return folder


def write_classes(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        home = folder / f"class-{label}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"{index}.png")
    return folder


SHORT = ["--recipe", "book-30-30", "--epochs", "8", "--lr", "0.5", "--batch-size", "16"]


def test_layout_of_the_notes_is_trained_on(tmp_path: Path, digits: Any) -> None:
    folder = write_numbered(tmp_path / "digits", *digits)
    data = load_image_folder(folder)
    assert (len(data.train_images), len(data.test_images)) == (270, 30)
    run = train(tmp_path, *SHORT, "--image-folder", str(folder), "--validation-size", "50")
    assert evaluation_of(run)["images"] == 30
    assert evaluation_of(run)["accuracy"] > 0.5
    card = json.loads((tmp_path / "models" / "images" / "1" / "model.json").read_text())
    assert card["labels"] == [str(digit) for digit in range(10)]
    assert set(card["data"]["files"]) == {"train", "test"}


def test_png_images_keep_their_pixels_and_labels(tmp_path: Path, digits: Any) -> None:
    images, labels = digits
    data = load_image_folder(write_classes(tmp_path / "x", images, labels))
    known = {pixels.tobytes(): label for pixels, label in zip(images, labels, strict=True)}
    for pixels, label in zip(data.test_images.numpy(), data.test_labels.tolist(), strict=True):
        assert known[pixels.tobytes()] == label


def test_folders_per_class_with_test_images_are_trained_on(tmp_path: Path, digits: Any) -> None:
    images, labels = digits
    few = labels < 3  # fewer than ten classes
    write_classes(tmp_path / "x" / "train", images[:200][few[:200]], labels[:200][few[:200]])
    write_classes(tmp_path / "x" / "test", images[200:][few[200:]], labels[200:][few[200:]])
    arguments = ["--image-folder", str(tmp_path / "x"), "--validation-size", "10"]
    run = train(tmp_path, *SHORT, *arguments, "--model-name", "three")
    evaluation = evaluation_of(run)
    assert evaluation["images"] == few[200:].sum()
    assert evaluation["accuracy"] > 0.7
    card = json.loads((tmp_path / "models" / "three" / "1" / "model.json").read_text())
    assert card["labels"] == ["class-0", "class-1", "class-2"]


def test_invalid_folder_is_explained(tmp_path: Path, digits: Any) -> None:
    images, labels = digits[0][:6], digits[1][:6]
    cases: dict[str, tuple[Any, str]] = {
        "absent": (lambda f: (f / "img_4.png").unlink(), r"neither img_4\.png"),
        "extra": (lambda f: np.save(f / "labels.npy", labels[:5]), "6 images and only 5"),
        "label": (lambda f: np.save(f / "labels.npy", labels + 9), r"label 1\d for img_0"),
        "fraction": (lambda f: np.save(f / "labels.npy", labels / 2), "float64"),
        "wide": (lambda f: Image.new("L", (32, 28)).save(f / "img_2.png"), r"img_2.*32 x 28"),
        "text": (lambda f: (f / "img_2.png").write_text("no"), r"img_2\.png is not an image"),
        "cut": (
            lambda f: (f / "img_2.png").write_bytes((f / "img_2.png").read_bytes()[:90]),
            r"img_2\.png",
        ),
        "twice": (lambda f: Image.new("L", (28, 28)).save(f / "img_2.jpg"), "same image twice"),
        "nothing": (lambda f: (f / "labels.npy").unlink(), "neither labels.npy nor a folder"),
    }
    for name, (spoil, message) in cases.items():
        folder = write_numbered(tmp_path / name, images, labels)
        spoil(folder)
        with pytest.raises(DataError, match=message):
            load_image_folder(folder)
    with pytest.raises(DataError, match="is not a folder"):
        load_image_folder(tmp_path / "none")


def test_pickled_labels_are_never_unpickled(tmp_path: Path, digits: Any) -> None:
    folder = write_numbered(tmp_path / "x", digits[0][:3], digits[1][:3])
    for content in (pickle.dumps([1, 2, 3]), b""):
        (folder / "labels.npy").write_bytes(content)
        with pytest.raises(DataError, match="not a plain NumPy array"):
            load_image_folder(folder)
    np.save(folder / "labels.npy", np.array([print] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a plain NumPy array"):
        load_image_folder(folder)


def test_train_and_test_need_the_same_classes_each_with_images(tmp_path: Path, digits: Any) -> None:
    images, labels = digits
    write_classes(tmp_path / "x" / "train", images[:50], labels[:50])
    write_classes(tmp_path / "x" / "test", images[:1], labels[:1])
    (tmp_path / "x" / "test" / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no image"):
        load_image_folder(tmp_path / "x")
    Image.new("L", (28, 28)).save(tmp_path / "x" / "test" / "empty" / "a.png")
    with pytest.raises(DataError, match="must be the same"):
        load_image_folder(tmp_path / "x")
