from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.pictures.files import open_picture
from service.core.pictures.page import SIDE, Floats, Ink, closed, ink_of, upright
from tests.service.core.pictures.drawing import closeness, picture, seven

STROKES = seven()


def ink_on(image: Image.Image) -> Ink:
    return ink_of(upright(image, SIDE)).ink


CLEAN = ink_on(picture(255 * (1 - STROKES)))


def saved(image: Image.Image, form: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return open_picture(file.getvalue(), 10**6, 10**6)


def shades() -> dict[str, Floats]:
    y, x = np.mgrid[0:240, 0:200].astype(np.float32)
    side = (x + y > 220).astype(np.float32)
    return {
        "none": np.ones_like(x),
        "hard shadow": 1 - 0.6 * side,
        "soft shadow": 1 - 0.6 / (1 + np.exp((110 - x) / 12)),
        "gradient": 0.4 + 0.6 * y / 240,
    }


@pytest.mark.parametrize("shade", shades())
@pytest.mark.parametrize(("paper", "pen"), [(230, 30), (200, 150), (30, 230), (60, 140)])
def test_ink_is_the_same_in_any_light_and_polarity(shade: str, paper: int, pen: int) -> None:
    image = picture((paper + (pen - paper) * STROKES) * shades()[shade])
    assert closeness(ink_on(image), CLEAN) > 0.92


@pytest.mark.parametrize("width", [30, 45, 60])
@pytest.mark.parametrize(("paper", "pen"), [(230, 30), (200, 60), (30, 230)])
def test_a_narrow_shadow_is_no_ink(width: int, paper: int, pen: int) -> None:
    """As of an arm or a pencil: strokes are darker than the shadow, in it and beside it."""
    y, x = np.mgrid[0:240, 0:200]
    light = np.where(np.abs(x + y - 220) < width, 0.6, 1.0)
    image = picture((paper + (pen - paper) * STROKES) * light)
    assert closeness(ink_on(image), CLEAN) > 0.92


@pytest.mark.parametrize(
    ("paper", "pen"),
    [
        ((200, 80, 80), (40, 150, 150)),
        ((90, 120, 250), (150, 120, 30)),
        ((255, 255, 0), (250,) * 3),
    ],
)
def test_a_pen_is_seen_on_paper_of_the_same_luminance(
    paper: tuple[int, int, int], pen: tuple[int, int, int]
) -> None:
    strokes = STROKES[:, :, None]
    image = picture(np.array(paper) + (np.array(pen) - np.array(paper)) * strokes)
    assert closeness(ink_on(image), CLEAN) > 0.95


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(turn: int, form: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture(255 * (1 - STROKES))
    stored = image.transpose(undo[turn]) if turn > 1 else image
    exif = Image.Exif()
    exif[0x0112] = turn
    opened = saved(stored, form, exif=exif)
    assert closeness(ink_on(opened), CLEAN) > 0.95
    quarter = upright(opened, SIDE, (0.0, 0.5, 0.5, 1.0))
    expected = image.crop((0, 120, 100, 240))
    assert closeness(np.asarray(quarter.convert("L")), np.asarray(expected)) > 0.95


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_ink_is_the_same_in_every_mode(mode: str) -> None:
    assert closeness(ink_on(picture(255 * (1 - STROKES)).convert(mode)), CLEAN) > 0.95


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (0, 255), (20_000, 21_000), (0, 4095)])
def test_16_bits_may_use_any_range(low: int, high: int) -> None:
    values = (low + (high - low) * (1 - STROKES)).astype(np.uint16)
    assert closeness(ink_on(saved(Image.fromarray(values), "PNG")), CLEAN) > 0.95


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (200, 0, 0), (250, 250, 120)])
@pytest.mark.parametrize("size", [(200, 240), (1000, 1200)], ids=["whole", "in bands"])
def test_transparent_paper_gets_the_colour_that_ink_stands_out_from(
    ink: tuple[int, int, int], size: tuple[int, int]
) -> None:
    layers = np.zeros((*STROKES.shape, 4))
    layers[..., :3] = np.where(STROKES[..., None] > 0, ink, 0)
    layers[..., 3] = 255 * STROKES
    image = picture(layers).resize(size, Image.Resampling.NEAREST)
    assert closeness(ink_on(image), CLEAN) > 0.95


def test_opaque_paper_with_transparent_corners_is_paper_to_its_corners() -> None:
    grey = 255 * (1 - STROKES)
    alpha = np.full_like(grey, 255)
    alpha[:20, :20] = alpha[-20:, -20:] = 0
    assert closeness(ink_on(picture(np.dstack([grey, grey, grey, alpha]))), CLEAN) > 0.95


def test_the_first_frame_of_a_gif_counts() -> None:
    image = picture(255 * (1 - STROKES))
    other = Image.new("L", image.size, 255)
    assert (
        closeness(ink_on(saved(image, "GIF", save_all=True, append_images=[other])), CLEAN) > 0.95
    )


@pytest.mark.parametrize("level", [0, 40, 128, 255])
@pytest.mark.parametrize("noise", [0, 3])
def test_paper_without_ink_is_blank_and_says_so(level: int, noise: float) -> None:
    random = np.random.default_rng(level)
    for shade in shades().values():
        page = ink_of(picture(level * shade + random.normal(0, noise, shade.shape)))
        assert not page.ink.any()
        assert "No ink was found" in page.hint


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pictures_of_any_mode_and_size_become_pages(data: st.DataObject) -> None:
    mode = data.draw(
        st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    )
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = random.integers(0, 256, (height, width, 4), np.uint8)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((values[:, :, 0] * 7).astype(kind))
    else:
        image = Image.fromarray(values, "RGBA").convert("RGB").convert(mode)
    small = upright(image, SIDE)
    assert small.mode in ("L", "RGB")
    assert max(small.size) <= 2 * SIDE
    page = ink_of(small)
    assert page.ink.dtype == np.uint8
    assert max(page.ink.shape) <= SIDE
    assert page.ink.any() == (not page.hint)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([3, 5, 7]), st.integers(0, 99))
def test_closing_is_the_lowest_square_that_covers(h: int, w: int, size: int, seed: int) -> None:
    plane = np.random.default_rng(seed).integers(0, 256, (h, w), np.uint8)
    padded = np.pad(plane, size - 1, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).max((2, 3))
    expected = np.lib.stride_tricks.sliding_window_view(windows, (size, size)).min((2, 3))
    assert np.array_equal(closed(plane[None], size)[0], expected)


@pytest.mark.parametrize("pen", [4, 12, 24, 40])
def test_strokes_of_any_width_are_ink(pen: int) -> None:
    strokes = np.zeros((128, 128), np.float32)
    strokes[14:114, 64 - pen // 2 : 64 + pen // 2] = strokes[94:114, 20:108] = 1
    for image in (picture(255 * (1 - strokes)), picture(255 * strokes)):
        assert np.array_equal(ink_on(image) >= 96, strokes > 0)
