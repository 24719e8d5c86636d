"""What is sent of arrays, PIL images, paths and bytes; and what is wrong with others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mnist_client import InvalidImage
from mnist_client.images import PIXELS, SUFFIXES, media_type_of, payload_of
from PIL import Image

from service.http.pictures import PICTURES
from tests.conftest import ROOT

SEVEN = ROOT / "docs" / "seven.png"
DIGIT = np.arange(784, dtype=np.uint8).reshape(28, 28)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def encoded(kind: str, image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("array", [DIGIT, DIGIT[None], DIGIT[:, :, None], np.asfortranarray(DIGIT)])
def test_28_by_28_are_pixels(array: np.ndarray) -> None:
    payload = payload_of(array)
    assert (payload.data, payload.media_type) == (DIGIT.tobytes(), PIXELS)


@pytest.mark.parametrize("shape", [(1, 5), (40, 30), (40, 30, 2), (40, 30, 3), (28, 28, 4)])
def test_other_arrays_are_pictures(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    payload = payload_of(array)
    assert payload.media_type == "image/png"
    np.testing.assert_array_equal(picture(payload.data), array)


def test_as_a_picture_pixels_are_a_png() -> None:
    for image in (DIGIT, DIGIT.tobytes()):
        payload = payload_of(image, as_picture=True)
        assert payload.media_type == "image/png"
        np.testing.assert_array_equal(picture(payload.data), DIGIT)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_are_a_file_or_pixels(wrap: Any) -> None:
    assert payload_of(wrap(SEVEN.read_bytes())).media_type == "image/png"
    assert payload_of(wrap(DIGIT.tobytes())).media_type == PIXELS


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif"])
def test_a_file_is_sent_as_it_is_whatever_its_name(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, Image.open(SEVEN).convert("L"))
    (tmp_path / "picture").write_bytes(data)
    for path in (tmp_path / "picture", str(tmp_path / "picture")):
        payload = payload_of(path)
        assert (payload.data, payload.media_type) == (data, f"image/{kind}")
        assert payload.media_type in PICTURES


def test_784_pixels_that_begin_like_a_bmp_are_pixels() -> None:
    assert media_type_of(b"BM" + bytes(782)) == ""
    assert media_type_of(b"BM" + (784).to_bytes(4, "little") + bytes(778)) == "image/bmp"


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "PA"]
)
def test_pil_images_of_every_mode_are_sent(mode: str) -> None:
    payload = payload_of(Image.new(mode, (40, 30)))
    assert Image.open(io.BytesIO(payload.data)).size == (40, 30)


def test_a_photo_is_turned_as_exif_says() -> None:
    photo = Image.new("L", (40, 30))
    photo.getexif()[0x0112] = 6  # turn it by a quarter
    file = io.BytesIO()
    photo.save(file, "JPEG", exif=photo.getexif())
    payload = payload_of(Image.open(file))
    assert Image.open(io.BytesIO(payload.data)).size == (30, 40)


def test_suffixes_are_those_of_the_servers_formats() -> None:
    kinds = {f"image/{suffix[1:]}".replace("jpg", "jpeg") for suffix in SUFFIXES}
    assert kinds == set(PICTURES)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "0 bytes are not a PNG"),
        (b"seven", "5 bytes are not a PNG"),
        ("missing.png", "'missing.png' cannot be read: No such file"),
        ("nul\0.png", "cannot be read: embedded null"),
        (str(ROOT / "README.md"), "is not a PNG, JPEG, WebP, BMP or GIF image"),
        (str(ROOT), "cannot be read: Is a directory"),
        (DIGIT / 255, "the array is float64; it must be uint8"),
        (np.zeros((3, 28, 28), np.uint8), "call predict_many"),
        (np.zeros((0, 28), np.uint8), r"has shape \[0, 28\]"),
        (np.zeros(784, np.uint8), r"has shape \[784\]"),
        (np.zeros((9, 9, 5), np.uint8), r"has shape \[9, 9, 5\]"),
        (Image.new("F", (3, 3)), "mode F"),
        (7, "has type 'int'; give an array"),
        (None, "has type 'NoneType'"),
    ],
)
def test_what_is_wrong_with_an_image_is_said_before_it_is_sent(image: Any, problem: str) -> None:
    with pytest.raises(InvalidImage, match=problem):
        payload_of(image)
