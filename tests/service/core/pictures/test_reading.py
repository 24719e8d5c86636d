from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from service.core.digits import Prediction
from service.core.errors import RequestTooLarge
from service.core.pictures.files import open_picture
from service.core.pictures.page import fine_ink_of
from service.core.pictures.reading import (
    Box,
    Candidate,
    Candidates,
    ReadDigit,
    _Piece,
    candidates_on,
    choose,
    find_digits,
    further,
)


def page(size: tuple[int, int], strokes: list[tuple[int, int, int, int]]) -> Image.Image:
    picture = Image.new("L", size, 230)
    for stroke in strokes:
        ImageDraw.Draw(picture).rectangle(stroke, fill=30)
    return picture


def prediction(digit: int, probability: float = 0.9, reason: str | None = "") -> Prediction:
    probabilities = np.full(10, (1 - probability) / 9, np.float32)
    probabilities[digit] = probability
    accepted = None if reason is None else not reason
    return Prediction(digit, probabilities, 0.0, (digit,), accepted, reason or "")


def whole(candidates: Candidates) -> list[list[Box]]:
    """The boxes of single pieces, line by line, in pixels of the picture."""
    scale = candidates.scale
    return [
        [Box(*(round(edge * scale) for edge in c.box)) for c in line if c.last - c.first == 1]
        for line in candidates.lines
    ]


def test_digits_are_in_reading_order_whatever_their_height_on_the_line() -> None:
    strokes = [(300, 42, 308, 90), (100, 30, 108, 80), (200, 50, 208, 101)]
    below = [(150, 150, 158, 200), (60, 160, 68, 205)]
    found = candidates_on(page((400, 260), strokes + below), 10)
    assert [[box.left for box in line] for line in whole(found)] == [[100, 200, 300], [60, 150]]


def test_a_line_may_rise() -> None:
    strokes = [(x, 300 - x // 3, x + 8, 350 - x // 3) for x in range(30, 600, 60)]
    (line,) = whole(candidates_on(page((640, 400), strokes), 20))
    assert [box.left for box in line] == list(range(30, 600, 60))


def test_boxes_are_in_pixels_of_a_large_picture() -> None:
    ((box,),) = whole(candidates_on(page((2600, 1300), [(1000, 400, 1100, 900)]), 4))
    assert np.abs(np.array(box) - (1000, 400, 1101, 901)).max() <= 8


def test_boxes_are_in_pixels_of_a_jpeg_that_is_decoded_at_half_its_size() -> None:
    file = io.BytesIO()
    page((2400, 1600), [(1000, 400, 1100, 900)]).save(file, "JPEG")
    image = open_picture(file.getvalue(), 16_000_000, 1_000_000)
    assert image.size != (2400, 1600)
    ((box,),) = whole(candidates_on(image, 4))
    assert np.abs(np.array(box) - (1000, 400, 1101, 901)).max() <= 16


def test_bright_ink_on_a_dark_page_is_ink() -> None:
    picture = page((300, 200), [(100, 50, 110, 120)])
    inverted = picture.point(lambda value: 255 - value)
    assert np.array_equal(fine_ink_of(picture) > 96, fine_ink_of(inverted) > 96)


@pytest.mark.parametrize(
    ("paper", "pen"),
    [
        ((120, 200, 120), (235, 150, 90)),  # of the same luminance
        ((90, 90, 230), (240, 200, 40)),
        ((250, 240, 200), (40, 40, 180)),
    ],
)
def test_ink_of_another_colour_is_ink(
    paper: tuple[int, int, int], pen: tuple[int, int, int]
) -> None:
    picture = Image.new("RGB", (300, 200), paper)
    picture.paste(pen, (100, 50, 110, 120))
    expected = Image.new("L", picture.size)
    expected.paste(255, (100, 50, 110, 120))
    assert np.array_equal(fine_ink_of(picture) > 96, np.asarray(expected) > 96)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_page_has_no_candidates(level: int) -> None:
    found = candidates_on(Image.new("L", (500, 300), level), 10)
    assert (found.lines, found.pixels.shape) == ([], (0, 28, 28))


def test_specks_and_underlines_are_no_digits() -> None:
    strokes = [(100, 50, 108, 120), (200, 50, 208, 120), (20, 20, 23, 23), (90, 128, 230, 131)]
    assert [len(line) for line in whole(candidates_on(page((300, 200), strokes), 10))] == [2]


def test_too_many_digits_are_refused_with_the_setting_named() -> None:
    strokes = [(x, y, x + 4, y + 20) for x in range(10, 390, 15) for y in range(10, 360, 40)]
    with pytest.raises(RequestTooLarge, match=r"more than 20 digits.*max_read_digits"):
        candidates_on(page((400, 400), strokes), 20)


def test_the_candidates_of_noise_are_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8)
    found = find_digits(noise, 50)
    seen: dict[int, Prediction] = {}
    while len(found.pixels):
        seen |= dict.fromkeys(found.numbers, prediction(3, 0.5, "not_a_digit"))
        found = further(found, seen, 50)
        assert found.rounds <= 10
    assert len(seen) <= 4 * 50 * 15
    dust = np.where(noise > 250, 255, 0).astype(np.uint8)
    with pytest.raises(RequestTooLarge, match="max_read_digits"):
        find_digits(np.kron(dust[:200, :200], np.ones((3, 3), np.uint8)), 50)


# Two bars that a thin bridge joins.
JOINED = [(100, 50, 130, 130), (180, 50, 210, 130), (130, 88, 180, 91)]


@pytest.mark.parametrize("reason", ["several_digits", "unsure", None])
def test_a_piece_that_leaves_doubt_is_cut(reason: str | None) -> None:
    found = candidates_on(page((300, 200), JOINED), 10)
    ((whole_box,),) = whole(found)
    assert np.abs(np.array(whole_box) - (100, 50, 211, 131)).max() <= 2
    more = further(found, {0: prediction(3, 0.5, reason)}, 10)
    boxes = [candidate.box for candidate in more.lines[0] if candidate.number in more.numbers]
    assert len(more.pixels) == len(boxes)
    assert any(abs(box.left - 100) <= 2 and 130 <= box.right < 180 for box in boxes)
    assert any(abs(box.right - 211) <= 2 and 130 < box.left <= 181 for box in boxes)


def test_the_model_sees_no_more_than_it_takes_to_know_the_cheapest_way() -> None:
    def model(candidate: Candidate) -> Prediction:
        left, _, right, _ = candidate.box
        is_bar = right - left < 75
        return prediction(4, 0.99) if is_bar else prediction(3, 0.5, "not_a_digit")

    found = candidates_on(page((300, 200), JOINED), 10)
    seen: dict[int, Prediction] = {}
    while len(found.pixels):
        by_number = {candidate.number: candidate for candidate in found.lines[0]}
        seen |= {number: model(by_number[number]) for number in found.numbers}
        found = further(found, seen, 10)
    everything = {candidate.number: model(candidate) for candidate in found.lines[0]}
    assert len(seen) < len(everything)
    way, best = choose(found, seen), choose(found, everything)
    assert [digit.box for digit in way.digits] == [digit.box for digit in best.digits]
    assert (way.text, best.text) == ("44", "44")


def test_after_a_few_rounds_the_model_sees_all_that_is_left() -> None:
    spans = [(0, 1), *((0, 1) for _ in range(30))]
    seen = {0: prediction(1, 0.5, "unsure")}
    found = further(candidates(line_of(*spans))._replace(rounds=2), seen, 10)
    while found.numbers:
        seen |= dict.fromkeys(found.numbers, prediction(1, 0.4, "unsure"))
        found = further(found, seen, 10)
    assert found.rounds < 12
    assert len(seen) == len(spans)


def test_a_piece_that_is_accepted_is_cut_only_if_it_is_wide() -> None:
    found = candidates_on(page((300, 200), [(100, 50, 130, 130), (130, 88, 160, 91)]), 10)
    assert not len(further(found, {0: prediction(4)}, 10).pixels)
    found = candidates_on(page((300, 200), JOINED), 10)
    assert len(further(found, {0: prediction(4)}, 10).pixels)


def test_parts_of_a_broken_digit_are_also_seen_together() -> None:
    # A stroke with its foot apart, and a digit of its own.
    strokes = [(100, 50, 108, 108), (98, 112, 110, 130), (200, 50, 208, 130)]
    (line,) = candidates_on(page((300, 200), strokes), 10).lines
    assert sorted((c.first, c.last) for c in line) == [(0, 1), (0, 2), (1, 2), (2, 3)]


PIECE = _Piece(Box(0, 0, 1, 1), Box(0, 0, 1, 1), np.full((1, 1), 255, np.uint8), 1.0, None)


def line_of(*spans: tuple[int, int]) -> list[Candidate]:
    return [
        Candidate(first, last, Box(first, 0, last, 1), 0.0, 0.75, [PIECE], number)
        for number, (first, last) in enumerate(spans)
    ]


def candidates(*lines: list[Candidate]) -> Candidates:
    return Candidates(list(lines), [], np.zeros((0, 28, 28), np.uint8), [])


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        (["", "", "several_digits"], "12"),
        (["not_a_digit", "not_a_digit", ""], "3"),
        (["", "", ""], "3"),
        (["not_a_digit", "", "unsure"], "3"),
        (["not_a_digit", "not_a_digit", "not_a_digit"], "?"),
        ([None, None, None], "3"),
    ],
)
def test_the_way_with_the_fewest_refusals_is_chosen(reasons: list[str | None], text: str) -> None:
    predictions = [
        prediction(digit, 0.6, reason) for digit, reason in zip((1, 2, 3), reasons, strict=True)
    ]
    found = candidates(line_of((0, 1), (1, 2), (0, 2)))
    assert choose(found, dict(enumerate(predictions))).text == text


def test_lines_are_chosen_on_their_own() -> None:
    below = [one._replace(number=one.number + 1) for one in line_of((0, 1), (1, 2))]
    found = candidates(line_of((0, 1)), below)
    predictions = [prediction(4), prediction(5), prediction(6, 0.4, "unsure")]
    reading = choose(found, dict(enumerate(predictions)))
    assert (reading.text, reading.lines) == ("4\n56", ["4", "56"])
    assert [digit.line for digit in reading.digits] == [0, 1, 1]
    assert reading.digits[0] == ReadDigit(Box(0, 0, 1, 1), 0, reading.digits[0].prediction)


@pytest.mark.parametrize(
    ("reasons", "probability", "text"),
    [
        (["", "not_a_digit", ""], 0.8, "123"),
        (["", "not_a_digit", ""], 0.6, "1?3"),
        (["", "several_digits", ""], 0.99, "1?3"),
        (["", "not_a_digit", "not_a_digit"], 0.99, "1??"),
    ],
)
def test_a_doubtful_mark_is_a_digit_among_digits(
    reasons: list[str], probability: float, text: str
) -> None:
    predictions = [prediction(n + 1, probability, reason) for n, reason in enumerate(reasons)]
    found = candidates(line_of((0, 1), (1, 2), (2, 3)))
    reading = choose(found, dict(enumerate(predictions)))
    assert reading.text == text
    assert [digit.prediction.accepted for digit in reading.digits] == [not r for r in reasons]


@given(
    st.lists(
        st.tuples(st.integers(0, 180), st.integers(0, 120), st.integers(1, 90), st.integers(1, 60)),
        max_size=12,
    )
)
@settings(max_examples=60)
def test_digits_are_inside_the_picture_and_ordered(
    boxes: list[tuple[int, int, int, int]],
) -> None:
    strokes = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    picture = page((200, 140), strokes)
    try:
        found = candidates_on(picture, 64)
        count = sum(map(len, found.lines))
        assert found.pixels.shape == (count, 28, 28)
        seen: dict[int, Prediction] = {}
        while len(found.pixels):
            assert found.pixels.shape == (len(found.numbers), 28, 28)
            seen |= {number: prediction(number % 10, 0.5, "unsure") for number in found.numbers}
            found = further(found, seen, 64)
    except RequestTooLarge:
        return
    reading = choose(found, seen)
    assert len(reading.lines) == len(found.lines)
    assert len(reading.digits) == sum(map(len, reading.lines)) <= 4 * 64
    assert [digit.line for digit in reading.digits] == sorted(d.line for d in reading.digits)
    for digit in reading.digits:
        left, top, right, bottom = digit.box
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 140


def test_marks_that_lie_in_each_other_are_refused_before_each_is_copied() -> None:
    sheet = Image.new("L", (600, 600))
    for radius in range(6, 297, 6):  # 49 circles of one pixel
        box = (300 - radius, 300 - radius, 300 + radius, 300 + radius)
        ImageDraw.Draw(sheet).ellipse(box, outline=255)
    with pytest.raises(RequestTooLarge, match="lie in each other"):
        find_digits(np.asarray(sheet), 500)
