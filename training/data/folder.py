"""A data set from a folder of image files, in either of two layouts.

The layout of the course notes: `img_0.png`, `img_1.jpg`, ... and `labels.npy`, an array with one
digit per image. The layout of torchvision's `ImageFolder`: one folder per class, named for the
class, with images of any name. If a folder has `train/` and `test/`, each of them has one of these
layouts. Otherwise a tenth of the images, drawn with a fixed seed, becomes the test set.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from training.data.dataset import DIGITS, DataSet
from training.errors import DataError

LABEL_FILE = "labels.npy"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_NOT_IMAGES = (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError)
_TEST_SHARE = 10  # one image in ten


class _Images(NamedTuple):
    """Images uint8 [N,28,28], their labels int64 [N], and the names of the classes."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_image_folder(folder: Path) -> DataSet:
    """Load a folder of images. Raises DataError, which names the invalid file."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Set --image-folder to a folder of images.")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _read(folder / "train"), _read(folder / "test")
        if train.classes != test.classes:
            raise DataError(
                f"{folder / 'train'} has the classes {', '.join(train.classes)} and "
                f"{folder / 'test'} has {', '.join(test.classes)}; they must be the same."
            )
        # Shuffle: the last training images are held out, and folders are read class by class.
        train = _select(train, _shuffled(len(train.labels)))
    else:
        whole = _read(folder)
        order = _shuffled(len(whole.labels))
        tested = max(1, len(order) // _TEST_SHARE)
        if tested >= len(order):
            raise DataError(f"{folder} has too few images for a training and a test set.")
        train, test = _select(whole, order[tested:]), _select(whole, order[:tested])
    return DataSet(
        train_images=train.pixels,
        train_labels=train.labels,
        test_images=test.pixels,
        test_labels=test.labels,
        sha256={"train": _digest(train), "test": _digest(test)},
        name="images",
        labels=train.classes,
    )


def _read(folder: Path) -> _Images:
    try:
        if (folder / LABEL_FILE).exists():
            return _read_numbered(folder)
        return _read_classes(folder)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _read_numbered(folder: Path) -> _Images:
    labels = _read_labels(folder / LABEL_FILE)
    paths = []
    for index in range(len(labels)):
        files = [p for suffix in _SUFFIXES if (p := folder / f"img_{index}{suffix}").exists()]
        if not files:
            raise DataError(
                f"{folder} has neither img_{index}.png nor img_{index}.jpg, and {LABEL_FILE} has "
                f"{len(labels)} labels: img_0 to img_{len(labels) - 1} must exist."
            )
        if len(files) > 1:
            raise DataError(f"{files[0]} and {files[1]} are the same image twice; remove one.")
        paths += files
    images = sum(path.suffix.lower() in _SUFFIXES for path in folder.glob("img_*"))
    if images > len(paths):
        raise DataError(
            f"{folder} has {images} images and only {len(labels)} labels in {LABEL_FILE}."
        )
    return _Images(_read_images(paths), torch.from_numpy(labels), DIGITS)


def _read_labels(path: Path) -> npt.NDArray[np.int64]:
    try:
        labels = np.load(path, allow_pickle=False)  # a pickle could run any code
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is not a plain NumPy array ({error}).") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"{path} holds an array {labels.shape} of {labels.dtype}; it must hold one "
            "integer per image."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= len(DIGITS)))
    if len(wrong):
        raise DataError(
            f"{path} has the label {labels[wrong[0]]} for img_{wrong[0]}; labels are 0 to 9."
        )
    result: npt.NDArray[np.int64] = labels.astype(np.int64)
    return result


def _read_classes(folder: Path) -> _Images:
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if len(classes) < 2:
        raise DataError(
            f"{folder} has neither {LABEL_FILE} nor a folder for each of two or more classes."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for index, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{folder / name} has no image ({', '.join(_SUFFIXES)}).")
        paths += files
        labels += [index] * len(files)
    return _Images(_read_images(paths), torch.tensor(labels), classes)


def _read_images(paths: list[Path]) -> Tensor:
    pixels = np.empty((len(paths), 28, 28), np.uint8)
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if image.size != (28, 28):
                    width, height = image.size
                    raise DataError(f"{path} has {width} x {height} pixels; it must have 28 x 28.")
                pixels[index] = np.asarray(image.convert("L"))
        except _NOT_IMAGES as error:
            raise DataError(f"{path} is not an image or is damaged ({error}).") from error
        except OSError as error:
            reason = error.strerror or str(error)  # truncated images raise a bare OSError
            raise DataError(f"{path} cannot be read: {reason}.") from error
    return torch.from_numpy(pixels)


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _select(images: _Images, order: Tensor) -> _Images:
    return _Images(images.pixels[order], images.labels[order], images.classes)


def _digest(images: _Images) -> str:
    content = hashlib.sha256(images.pixels.numpy().tobytes())
    content.update(images.labels.numpy().tobytes())
    return content.hexdigest()
