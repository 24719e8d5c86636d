"""Thresholds and prediction sets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.evaluation.acceptance import fit_thresholds, measure_acceptance
from training.models import REASONS, Classifier, Thresholds, scores_of


def _digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of digits, some of them hard, and their labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=random)
    logits = torch.randn(count, 12, generator=random) * 2
    logits[torch.arange(count), labels] += 9
    logits[:, 10:] -= 3
    return logits, labels


def test_given_shares_of_digits_are_not_accepted() -> None:
    logits, labels = _digits(10_000, 0)
    thresholds = fit_thresholds(logits, labels, 10, 1.5)
    scores = scores_of(logits, 10, 1.5)
    refused = scores.outlier > thresholds.outlier
    assert int(refused.sum()) == 50
    assert int((refused | (scores.confidence < thresholds.confidence)).sum()) == 170


def test_prediction_sets_hold_the_truth_of_new_digits() -> None:
    thresholds = fit_thresholds(*_digits(10_000, 0), 10, 1.0)
    logits, labels = _digits(100_000, 1)
    truth = torch.softmax(logits[:, :10], 1)[torch.arange(100_000), labels]
    assert (truth >= thresholds.prediction_set).double().mean() == pytest.approx(0.999, abs=0.001)


def test_sets_hold_every_digit_if_too_few_images_were_held_out() -> None:
    assert fit_thresholds(*_digits(500, 0), 10, 1.0).prediction_set == 0


class _Constant(nn.Module):
    """Gives each image the logits that are written in its first twelve pixels."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.reshape(-1, 784)[:, :12] * 255


def _image(*logits: int) -> Tensor:
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[0, :12] = torch.tensor(logits, dtype=torch.uint8)
    image[27, 27] = 255
    return image


def test_reasons_have_an_order_and_a_set_is_never_empty() -> None:
    limits = Thresholds(contrast=0.1, outlier=0.5, confidence=0.9, prediction_set=0.3)
    classifier = Classifier(nn.Sequential(_Constant()), thresholds=limits)
    images = torch.stack(
        [
            _image(9, *[0] * 11),
            torch.full((28, 28), 25, dtype=torch.uint8),
            _image(*[0] * 11, 9),
            _image(*[0] * 10, 9, 0),
            _image(5, 5, *[0] * 10),
            _image(*[1] * 10, 0, 0),
        ]
    )
    _, _, accepted, reason, sets = classifier(images)
    assert accepted.dtype == sets.dtype == torch.bool
    assert reason.dtype == torch.uint8
    words = ["", "blank", "several_digits", "not_a_digit", "unsure", "unsure"]
    assert [REASONS[code] for code in reason.tolist()] == words
    assert accepted.tolist() == [True] + [False] * 5
    assert sets[0].tolist() == [True] + [False] * 9
    assert sets[4].tolist() == [True, True] + [False] * 8
    assert sets.any(1).all()


def test_acceptance_is_measured_on_digits_and_on_outliers() -> None:
    limits = Thresholds(contrast=0.1, outlier=0.5, confidence=0.9, prediction_set=0.3)
    classifier = Classifier(nn.Sequential(_Constant()), thresholds=limits)
    digits = torch.stack([_image(9, *[0] * 11)] * 3 + [_image(*[0] * 10, 9, 0)])
    others = torch.stack([_image(*[0] * 10, 9, 0), _image(*[0] * 11, 9), _image(9, *[0] * 11)])
    kinds = torch.tensor([10, 11, 0])
    labels = torch.arange(10).repeat(1)[[0, 0, 1, 2]]
    result = measure_acceptance(classifier, digits, labels, (others, kinds))
    assert result.not_accepted["not_a_digit"] == 0.25
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.outliers_not_accepted == {"not_a_digit": 1.0, "several_digits": 1.0}
    assert result.roc["outlier"].operating_point == (0.25, 1.0)
