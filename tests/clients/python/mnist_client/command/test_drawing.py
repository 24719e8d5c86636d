"""Drawings for a terminal: bars, thumbnails and pictures in characters."""

from __future__ import annotations

from typing import Any

import pytest
from mnist_client.command.drawing import bars, drawing, in_characters, thumbnail
from mnist_client.results import Prediction, Timings
from PIL import Image

from service.core.digits import REASONS
from tests.conftest import ROOT

SEVEN = (ROOT / "docs" / "seven.png").read_bytes()


def prediction(**fields: Any) -> Prediction:
    values = {
        "digit": 4,
        "probabilities": (0.1,) * 10,
        "entropy_bits": 3.32,
        "prediction_set": None,
        "accepted": None,
        "reason": "",
        "hint": "",
        "model_name": "m",
        "model_version": "3",
        "timings": Timings(1.0),
    }
    return Prediction(**(values | fields))


def test_bars_are_as_long_as_their_probabilities() -> None:
    distribution = (0.0, 0.0, 0.0, 0.0, 0.75, 0.0, 0.0, 0.25, 0.0, 0.0)
    lines = bars(prediction(probabilities=distribution, entropy_bits=0.811)).splitlines()
    assert [line.count("█") for line in lines[:10]] == [0, 0, 0, 0, 24, 0, 0, 8, 0, 0]
    assert lines[4].endswith("75.000%")
    assert lines[10] == "It is a 4, entropy 0.811 bits (m version 3)"


@pytest.mark.parametrize("reason", REASONS[1:])
def test_every_reason_has_plain_words(reason: str) -> None:
    refused = prediction(
        prediction_set=(4, 7), accepted=False, reason=reason, hint="Write it again."
    )
    lines = bars(refused).splitlines()
    assert lines[10].startswith("Not accepted: ")
    assert "_" not in lines[10]
    assert lines[10].endswith(". Write it again.")
    assert lines[11] == "The closest digit is 4, entropy 3.320 bits (m version 3)"


def test_colours_mark_the_digit_and_nothing_is_coloured_without() -> None:
    assert "\x1b[1;32m4 " in bars(prediction(), colour=True)
    assert "\x1b" not in bars(prediction())


def test_the_picture_stands_beside_the_bars() -> None:
    lines = drawing(SEVEN, prediction(), colour=False).splitlines()
    assert len(lines) == 14
    assert "█" in lines[4][:28]
    assert lines[4][31:33] == "4 "


def test_a_damaged_picture_has_bars_alone() -> None:
    assert thumbnail(SEVEN[:60]) == []
    assert drawing(SEVEN[:60], prediction(), colour=False).startswith("0 ")


def test_raw_pixels_are_drawn_too() -> None:
    assert thumbnail(bytes(392) + b"\xff" * 392)[6:8] == [" " * 28, "█" * 28]


def test_two_pixels_share_a_character() -> None:
    picture = Image.new("RGB", (2, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    picture.putpixel((1, 1), (255, 255, 255))
    picture.paste((255, 255, 255), (0, 2, 1, 4))
    assert in_characters(picture, 80, colour=False) == "▀▄\n█ \n"
    assert "38;2;255;255;255;48;2;0;0;0m▀" in in_characters(picture, 80, colour=True)
    assert len(in_characters(picture.resize((200, 2)), 80, colour=False)) == 81
