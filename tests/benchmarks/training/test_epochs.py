"""Epochs as runs write them, and the time to an accuracy."""

from __future__ import annotations

import pytest

from benchmarks.training.epochs import Epoch, parse, seconds_to


def epochs(seconds: float, *accuracies: float) -> list[Epoch]:
    return [Epoch(seconds, accuracy) for accuracy in accuracies]


def test_seconds_to_a_target_are_those_up_to_the_end_of_its_epoch() -> None:
    assert seconds_to(0.99, epochs(2.0, 0.98, 0.985, 0.991, 0.989)) == pytest.approx(6.0)
    assert seconds_to(0.99, epochs(2.0, 0.98)) is None


def test_accuracy_is_of_the_validation_images_else_of_the_test_images() -> None:
    lines = (
        '{"seconds": 2.0, "validation_accuracy": 0.9, "test_accuracy": 0.8, "images": 7}\n'
        '{"seconds": 3.0, "test_accuracy": 0.8}\n'
    )
    assert parse(lines) == [Epoch(2.0, 0.9, 7), Epoch(3.0, 0.8)]
