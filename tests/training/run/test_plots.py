"""Plots are PNG files, also of unusual numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import nn

from training.evaluation.metrics import CoveragePoint, Mistake, ReliabilityBin
from training.run import plots


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A warning of matplotlib, as of an empty axis or a figure left open, fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert plots.plt.get_fignums() == []


def size_of(png: bytes | None) -> tuple[int, int]:
    """Width and height of a PNG that has some ink."""
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        darkest, brightest = image.convert("L").getextrema()
        assert darkest < brightest
        return image.size


@pytest.mark.parametrize("classes", [2, 10, 47])
def test_confusion_has_a_cell_per_pair_of_classes(classes: int) -> None:
    counts = [[row * column for column in range(classes)] for row in range(classes)]
    size_of(plots.confusion(counts, [f"name {index}" for index in range(classes)]))


def test_confusion_without_a_mistake_is_plotted() -> None:
    size_of(plots.confusion([[5, 0], [0, 5]], "ab"))


def test_reliability_leaves_out_empty_bins() -> None:
    empty = ReliabilityBin(images=0, confidence=None, accuracy=None)
    full = ReliabilityBin(images=7, confidence=0.9, accuracy=0.8)
    size_of(plots.reliability([empty, full], [full, empty]))


def test_coverage_is_plotted() -> None:
    points = [
        CoveragePoint(coverage=share, threshold=0.5, accuracy=1 - share / 100)
        for share in (0.5, 1.0)
    ]
    size_of(plots.coverage(points))


def test_mistakes_fill_rows_of_eight() -> None:
    images = torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1).expand(9, 28, 28) * 20
    mistake = Mistake(image=3, label=0, predicted=1, confidence=0.99)
    one_row = size_of(plots.mistakes([mistake] * 8, images, "ab"))
    two_rows = size_of(plots.mistakes([mistake] * 9, images, "ab"))
    assert two_rows == (one_row[0], 2 * one_row[1])
    assert plots.mistakes([], images, "ab") is None


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 5, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 100)),
    ],
)
def test_first_filters_are_shown(network: nn.Sequential) -> None:
    size_of(plots.first_filters(network))


def test_filters_of_zeros_are_shown() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3))
    nn.init.zeros_(network[0].weight)
    size_of(plots.first_filters(network))


def test_network_without_weights_has_no_filters() -> None:
    assert plots.first_filters(nn.Sequential(nn.Flatten())) is None


def test_heat_map_takes_numbers_words_and_gaps() -> None:
    grid = [[0.98, "pruned", None], [0.5, "diverged", 0.97]]
    width, height = size_of(plots.heat_map(grid, ("lr", "ab"), ("hidden", "abc")))
    assert width > height
