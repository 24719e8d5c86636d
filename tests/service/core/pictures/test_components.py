from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.core.pictures.components import components_of, digit_of, without_lines
from service.core.pictures.page import Ink

SHAPE = (128, 128)


def drawn(*strokes: list[tuple[float, float]], width: int = 9) -> Ink:
    page = Image.new("L", SHAPE)
    for stroke in strokes:
        ImageDraw.Draw(page).line(stroke, fill=255, width=width)
    return np.asarray(page)


SEVEN = drawn([(40, 30), (85, 30), (55, 100)])
ONE = drawn([(64, 25), (64, 105)])


def lines(angle: float, *, squared: bool = False) -> Ink:
    y, x = np.mgrid[0:128, 0:128]
    slope = np.tan(np.deg2rad(angle))
    ink = np.abs((y + slope * x) % 26 - 13) < 1.2
    if squared:
        ink |= np.abs((x - slope * y) % 26 - 13) < 1.2
    return np.where(ink, np.uint8(255), np.uint8(0))


def box(angle: float) -> Ink:
    page = Image.new("L", SHAPE)
    ImageDraw.Draw(page).rectangle((25, 15, 100, 112), outline=255, width=2)
    return np.asarray(page.rotate(angle, Image.Resampling.BILINEAR))


def chosen(ink: Ink) -> tuple[np.ndarray, bool]:
    found = components_of(ink >= 96)
    labels, several = digit_of(found, SHAPE)
    return np.isin(found.labels, labels), several


@pytest.mark.parametrize("angle", [0, -1, 2, -3, 4])
@pytest.mark.parametrize("digit", [SEVEN, ONE], ids=["seven", "one"])
def test_ruling_and_boxes_go_and_strokes_stay(angle: float, digit: Ink) -> None:
    for paper in (lines(angle), lines(angle, squared=True), box(angle)):
        mask, several = chosen(without_lines(np.maximum(digit, paper)))
        assert not several
        both = np.count_nonzero(mask & (digit >= 96))
        assert both > 0.9 * np.count_nonzero(digit >= 96)
        assert both > 0.65 * np.count_nonzero(mask)


def test_ruling_alone_leaves_nothing() -> None:
    for angle in (0, 3):
        assert not chosen(without_lines(lines(angle, squared=True)))[0].any()
        assert not chosen(without_lines(lines(angle)))[0].any()


@pytest.mark.parametrize("width", [3, 6, 9])
def test_a_one_from_edge_to_edge_is_no_ruling(width: int) -> None:
    one = drawn([(64, 0), (64, 127)], width=width)
    assert np.array_equal(without_lines(one), one)


def test_specks_are_dropped() -> None:
    ink = SEVEN.copy()
    ink[10:13, 100:103] = ink[110:114, 20:24] = ink[64:67, 110:113] = 255
    mask, several = chosen(ink)
    assert np.array_equal(mask, SEVEN >= 96)
    assert not several


def test_a_frame_at_the_edge_is_dropped() -> None:
    ink = SEVEN.copy()
    ink[:5] = ink[-5:] = ink[:, :5] = ink[:, -5:] = 255
    assert np.array_equal(chosen(ink)[0], SEVEN >= 96)


def test_a_five_whose_bar_is_apart_is_one_digit() -> None:
    ink = drawn(
        [(45, 25), (85, 22)], [(45, 38), (43, 62), (70, 62), (80, 85), (65, 105), (40, 100)]
    )
    mask, several = chosen(ink)
    assert not several
    assert np.array_equal(mask, ink >= 96)


@pytest.mark.parametrize(("x", "y"), [(38, 0), (-45, 5)])
def test_digits_beside_each_other_are_several(x: int, y: int) -> None:
    other = np.roll(ONE, (y, x), (0, 1))
    assert chosen(np.maximum(SEVEN, other))[1]


def test_boxes_and_areas_of_components() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3:7, 10:30] = True
    mask[7:9, 30:31] = True  # joined by a corner
    mask[100:, 90:] = True
    found = components_of(mask)
    assert found.boxes[1:].tolist() == [[3, 10, 9, 31], [100, 90, 128, 128]]
    assert found.areas[1:].tolist() == [82, 28 * 38]
