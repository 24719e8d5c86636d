from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from benchmarks.pictures.kinds import KINDS, draw, file_of
from service.core.pictures.digit import Found, find_digit, fit_digit
from service.core.pictures.files import open_picture
from tests.conftest import SHIPPED_MODELS, Mnist
from tests.service.core.pictures.drawing import closeness, picture, seven

CLEAN = find_digit(picture(255 * (1 - seven()))).pixels


def found_in(body: bytes) -> Found:
    return find_digit(open_picture(body, 10**7, 10**7))


@pytest.mark.parametrize("kind", KINDS)
def test_digits_on_pictures_of_every_kind_are_read(kind: str, mnist: Mnist) -> None:
    count = 25
    found = [
        found_in(file_of(draw(kind, mnist.images[i], np.random.default_rng(i), "tune")))
        for i in range(count)
    ]
    assert [one.reason for one in found].count("") >= count - 1
    model = onnxruntime.InferenceSession(SHIPPED_MODELS / "mnist" / "1" / "model.onnx")
    pixels = np.concatenate([one.pixels for one in found])
    (probabilities,) = model.run(["probabilities"], {model.get_inputs()[0].name: pixels})
    assert np.count_nonzero(probabilities.argmax(axis=1) == mnist.labels[:count]) >= count - 2


def test_a_small_digit_on_a_large_page_is_looked_at_closer() -> None:
    page = Image.new("L", (2000, 1400), 240)
    page.paste(picture(240 * (1 - seven(100, 120))), (1500, 900))
    found = find_digit(page, explain=True)
    assert closeness(found.pixels, CLEAN) > 0.9
    assert "closer" in [name for name, _ in found.steps]


def test_explain_shows_every_step_and_changes_nothing(mnist: Mnist) -> None:
    large = picture(255 * (1 - seven()))
    for image in (large, Image.fromarray(mnist.images[0])):
        found = find_digit(image, explain=True)
        assert np.array_equal(np.asarray(found.steps[-1][1]), found.pixels[0])
        assert found.steps[-1][0] == "pixels"
        plain = find_digit(image)
        assert plain.steps == ()
        assert np.array_equal(plain.pixels, found.pixels)
    assert [name for name, _ in find_digit(large, explain=True).steps] == [
        "picture",
        "ink",
        "digit",
        "pixels",
    ]


def test_a_blank_page_has_a_hint_and_its_steps() -> None:
    found = find_digit(Image.new("L", (300, 200), 200), explain=True)
    assert found.reason == "blank"
    assert "darker or lighter than the paper" in found.hint
    assert not found.pixels.any()
    assert [name for name, _ in found.steps] == ["picture", "ink"]


@pytest.mark.parametrize("soft", [1.0, 6.0])
@pytest.mark.parametrize("angle", [0.0, 0.6, 0.8, 1.5, 2.4])
def test_a_shadow_across_a_blank_page_is_no_digit(angle: float, soft: float) -> None:
    y, x = np.mgrid[-120:120, -100:100]
    away = np.abs(x * np.cos(angle) + y * np.sin(angle) - 10) - 20
    light = 1 - 0.4 / (1 + np.exp(np.clip(away / soft, -30, 30)))
    found = find_digit(picture(240 * light))
    assert (found.reason, "shadows" in found.hint) == ("blank", True)


@pytest.mark.parametrize("soft", [0.5, 3.0])
@pytest.mark.parametrize("wide", [0.2, 0.35, 0.5])
def test_the_tip_of_a_wide_shadow_is_no_digit(wide: float, soft: float) -> None:
    y, x = np.mgrid[:240, -100:100]
    away = np.maximum(np.abs(x) - wide * (y - 60), 60 - y)  # a finger that comes in from below
    light = 1 - 0.45 / (1 + np.exp(np.clip(away / soft, -30, 30)))
    page = 240 * light + np.random.default_rng(1).normal(0, 2, light.shape)
    assert find_digit(picture(page)).reason == "blank"


@pytest.mark.parametrize("thick", [2, 6])
def test_a_faint_digit_beside_lines_as_dark_is_read(thick: int) -> None:
    page = np.zeros((240, 240))
    page[65:175, 50:190] = seven(140, 110)
    alone = find_digit(picture(235 - 60 * page))
    page[50 : 50 + thick] = page[185 : 185 + thick] = 1
    found = find_digit(picture(235 - 60 * page))
    assert not found.reason
    assert closeness(found.pixels, alone.pixels) > 0.9


@pytest.mark.parametrize(("paper", "ink"), [(100, 150), (150, 190), (20, 50), (60, 90)])
def test_faint_chalk_is_read(paper: int, ink: int) -> None:
    page = np.zeros((240, 240))
    page[65:175, 50:190] = seven(140, 110)
    found = find_digit(picture(paper + (ink - paper) * page))
    assert not found.reason
    assert closeness(found.pixels, find_digit(picture(255 * page)).pixels) > 0.9


def test_a_dark_digit_may_run_out_of_the_page_and_a_faint_one_may_come_near() -> None:
    whole = seven()
    rows, columns = (np.flatnonzero(whole.any(axis=axis)) for axis in (1, 0))
    cut = whole[rows[0] + 4 : rows[-1] - 4, columns[0] + 4 : columns[-1] - 4]
    assert not find_digit(picture(230 - 200 * cut)).reason
    close = np.pad(cut, max(cut.shape) // 6)
    assert not find_digit(picture(230 - 50 * close)).reason


def test_several_digits_are_named() -> None:
    both = np.hstack([seven(), seven()])
    found = find_digit(picture(255 * (1 - both)))
    assert found.reason == "several_digits"
    assert "/read" in found.hint


def test_28x28_dark_on_white_is_inverted(mnist: Mnist) -> None:
    values = [
        closeness(find_digit(Image.fromarray(255 - image)).pixels, image)
        for image in mnist.images[:50]
    ]
    assert np.mean(values) > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (300, 2), (28, 28), (500, 300)])
def test_ink_of_any_shape_fits(shape: tuple[int, int]) -> None:
    pixels = fit_digit(np.full(shape, 255, np.uint8))
    assert pixels.shape == (28, 28)
    rows, columns = np.nonzero(pixels)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert abs(rows.mean() - 13.5) <= 0.5
    assert abs(columns.mean() - 13.5) <= 0.5


def test_no_ink_fits_as_nothing() -> None:
    assert not fit_digit(np.zeros((9, 5), np.uint8)).any()
