from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from service.core.classification.pictures import PictureError, picture_input, rule_of
from service.core.errors import InvalidArgument
from service.core.pictures.files import open_picture
from service.core.tensors import TensorSpec

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = {"mean": MEAN, "std": STD, "shorter_side": 256}


def form_of(rule: dict[str, Any], shape: tuple[int, ...], datatype: str = "FP32") -> Any:
    return picture_input(rule_of(rule), [TensorSpec("x", datatype, shape)])


def opened(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return open_picture(file.getvalue(), 16_000_000, 4_000_000)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without sharp edges, as photos of this size are."""
    random = np.random.default_rng(seed)
    few = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (224, 224), (100, 80), (300, 900), (1001, 777)]
)
def test_a_crop_is_that_of_torchvision(size: tuple[int, int]) -> None:
    picture = smooth(*size)
    form = form_of(IMAGENET, (-1, 3, 224, 224))
    pixels = form.pixels(opened(picture))
    cropped = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(picture)
    expected = np.asarray(cropped).astype(int)
    assert pixels.shape == (1, 224, 224, 3)
    assert np.abs(pixels[0].astype(int) - expected).max() <= 1
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    assert (
        np.abs(form.array(np.asarray(cropped)[None])[0] - normalise(cropped).numpy()).max() < 1e-5
    )


def test_a_large_picture_is_reduced_first_and_hardly_differs() -> None:
    picture = smooth(1999, 1501)
    form = form_of({"shorter_side": 40, "size": [32, 32], "colour": "RGB"}, (-1, 3, 32, 32))
    expected = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32)])(picture)
    difference = np.abs(form.pixels(opened(picture))[0].astype(int) - np.asarray(expected))
    assert difference.mean() < 2
    assert difference.max() < 16


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_seen_as_exif_turns_it(turn: int) -> None:
    picture, exif = smooth(60, 40), Image.Exif()
    exif[0x0112] = turn
    form = form_of({"resize": "stretch"}, (-1, 3, 20, 30), "UINT8")
    turned = form.pixels(opened(picture, exif=exif))
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = picture if turn == 1 else picture.transpose(methods[turn])
    assert np.abs(turned.astype(int) - form.pixels(opened(upright))).max() <= 1


def test_resize_rules() -> None:
    # Left to right: 10 black columns, 20 white ones, 10 black ones.
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (10, 0, 30, 20))
    rows = {
        rule: form_of({"resize": rule, "filter": "box", "fill": 7}, (-1, 8, 8), "UINT8")
        .pixels(opened(picture))[0, :, :, 0]
        .tolist()
        for rule in ("crop", "pad", "stretch")
    }
    assert rows["crop"] == [[255] * 8] * 8
    assert rows["stretch"] == [[0, 0, 255, 255, 255, 255, 0, 0]] * 8
    assert rows["pad"] == [[7] * 8] * 2 + [[0, 0, 255, 255, 255, 255, 0, 0]] * 4 + [[7] * 8] * 2


def test_colour_and_layout() -> None:
    picture = opened(Image.new("RGB", (4, 4), (10, 20, 30)))
    assert form_of({}, (-1, 3, 2, 2), "UINT8").pixels(picture).shape == (1, 2, 2, 3)
    cases: list[tuple[dict[str, Any], tuple[int, ...], list[int]]] = [
        ({}, (-1, 3, 1, 1), [10, 20, 30]),
        ({"colour": "BGR"}, (-1, 3, 1, 1), [30, 20, 10]),
        ({"layout": "NHWC"}, (-1, 1, 1, 3), [10, 20, 30]),
        ({"layout": "CHW", "colour": "RGB"}, (3, 1, 1), [10, 20, 30]),
        ({"layout": "HWC", "colour": "BGR"}, (1, 1, 3), [30, 20, 10]),
        ({"layout": "NHWC", "size": [1, 1], "colour": "RGB"}, (-1, 3), [10, 20, 30]),
        ({"layout": "NCHW", "size": [1, 1], "colour": "RGB"}, (-1, -1, -1, -1), [10, 20, 30]),
        ({}, (-1, 1, 1), [18]),
    ]
    for rule, shape, expected in cases:
        form = form_of(rule, shape, "UINT8")
        array = form.array(form.pixels(opened(Image.new("RGB", (4, 4), (10, 20, 30)))))
        assert array.ravel().tolist() == expected, (rule, shape)
        assert array.shape == (1, *form.row)


def test_layouts_order_pixels_as_numpy_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    for layout, expected in (("NCHW", pixels.transpose(0, 3, 1, 2)), ("NHWC", pixels)):
        rule = {"layout": layout, "size": [4, 5], "colour": "RGB"}
        for datatype in ("UINT8", "FP32"):
            scale = {"scale": 1.0}
            for shape in (expected.shape[1:], (60,)):
                array = form_of(rule | scale, (-1, *shape), datatype).array(pixels)
                assert np.array_equal(array, expected.reshape(2, *shape))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT8", "INT32"])
def test_pixel_values_are_scaled_and_rounded_to_the_datatype(datatype: str) -> None:
    form = form_of({"scale": 0.5, "mean": 64, "std": 0.5}, (-1, 16, 16), datatype)
    array = form.array(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))
    exact = np.arange(256) - 128.0
    if datatype == "UINT8":
        exact = exact.clip(0)
    assert array.ravel().tolist() == exact.tolist()


def test_floats_are_scaled_to_1_and_integers_are_not() -> None:
    pixels = np.array([0, 51, 255, 255], np.uint8).reshape(1, 2, 2, 1)
    assert form_of({}, (-1, 2, 2)).array(pixels).ravel().tolist() == pytest.approx([0, 0.2, 1, 1])
    assert form_of({}, (-1, 2, 2), "UINT8").array(pixels).ravel().tolist() == [0, 51, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK"])
def test_every_mode_of_pictures_has_pixels(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    picture = opened(smooth(50, 40).convert("L").convert(mode), kind)
    assert form_of(IMAGENET, (-1, 3, 224, 224)).pixels(picture).shape == (1, 224, 224, 3)
    picture = opened(smooth(700, 640).convert("L").convert(mode), kind)
    assert form_of({}, (-1, 1, 16, 16)).pixels(picture).shape == (1, 16, 16, 1)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_any_size_becomes_the_models(
    size: tuple[int, int], target: tuple[int, int], resize: str
) -> None:
    form = form_of({"resize": resize}, (-1, *target))
    pixels = form.pixels(opened(Image.new("L", size, 200)))
    assert pixels.shape == (1, *target, 1)
    assert set(np.unique(pixels)) <= ({0, 200} if resize == "pad" else {200})


def test_arrays_and_raw_pixels() -> None:
    form = form_of({"colour": "RGB", "layout": "NCHW"}, (-1, 3, 2, 2))
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert np.array_equal(form.pixels_from_bytes(pixels.tobytes()), pixels)
    for array in (pixels, pixels.reshape(2, 12)):
        assert np.array_equal(form.pixels_from_values(array), pixels)
        assert np.array_equal(form.pixels_from_values(array[0]), pixels[:1])
    grey = form_of({}, (-1, 2, 2))
    for shape in ((2, 2), (3, 2, 2), (2, 2, 1), (3, 2, 2, 1), (4,), (3, 4)):
        assert grey.pixels_from_values(np.zeros(shape, np.uint8)).shape[1:] == (2, 2, 1)
    for wrong in ((2, 3), (3,), (1, 1, 2, 2), (2, 2, 3)):
        with pytest.raises(InvalidArgument, match="image: has shape"):
            grey.pixels_from_values(np.zeros(wrong, np.uint8))
    for raw in (b"", bytes(11)):
        with pytest.raises(InvalidArgument, match="2x2x3 = 12 bytes"):
            form.pixels_from_bytes(raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": [0.5, 0.5]}, "one number per channel"),
        ({"scale": float("nan")}, "must be finite"),
        ({"std": [1, 0, 1]}, "std must not be 0"),
        ({"resize": "pad", "shorter_side": 256}, "picture.shorter_side is for"),
    ],
)
def test_rules_that_make_no_sense_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        rule_of(fields)


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({}, TensorSpec("x", "FP32", (-1, 3, -1, -1)), "picture.size is missing"),
        ({}, TensorSpec("x", "FP32", (-1, 784)), "picture.colour is missing"),
        ({"colour": "grey"}, TensorSpec("x", "FP32", (-1, 784)), "picture.size is missing"),
        ({"colour": "RGB"}, TensorSpec("x", "FP32", (-1, 12)), "picture.layout is missing"),
        ({}, TensorSpec("x", "FP32", ()), "picture.colour is missing"),
        ({}, TensorSpec("x", "FP32", (4, 3, 8, 8)), "CHW or HWC"),
        ({}, TensorSpec("x", "BYTES", (-1, 3, 8, 8)), "needs an input of numbers"),
        ({}, TensorSpec("x", "BF16", (-1, 3, 8, 8)), "needs an input of numbers"),
        ({"size": [9, 8]}, TensorSpec("x", "FP32", (-1, 3, 8, 8)), "makes RGB pixels of"),
        ({"colour": "grey"}, TensorSpec("x", "FP32", (-1, 3, 8, 8)), "makes grey pixels of"),
        ({"mean": [0, 0, 0]}, TensorSpec("x", "FP32", (-1, 8, 8)), "grey has one"),
        ({"shorter_side": 7}, TensorSpec("x", "FP32", (-1, 8, 8)), "at least 8"),
    ],
)
def test_a_rule_that_does_not_fit_the_model_is_refused(
    fields: dict[str, Any], spec: TensorSpec, message: str
) -> None:
    with pytest.raises(PictureError, match=message):
        picture_input(rule_of(fields), [spec])


def test_a_picture_has_one_input() -> None:
    spec = TensorSpec("x", "FP32", (-1, 8, 8))
    with pytest.raises(PictureError, match="this one has 2"):
        picture_input(rule_of({}), [spec, spec])
