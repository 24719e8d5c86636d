"""Metrics, each on a case that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.evaluation.metrics import (
    accuracy_at_coverage,
    brier_score,
    calibration_error,
    cross_entropy_bits,
    entropy_bits,
    evaluate,
    fit_temperature,
    kl_divergence_bits,
    loss_and_accuracy,
    most_confident_mistakes,
    reliability,
)


def test_calibration_error_of_a_case_computed_by_hand() -> None:
    # Two images with confidence 0.8, one right: |0.8 - 0.5|; one with 1.0 and right: no gap.
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert calibration_error(probabilities, labels) == pytest.approx(0.3 * 2 / 3, abs=1e-6)


def test_brier_score_of_a_case_computed_by_hand() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    assert brier_score(probabilities, torch.tensor([0, 0])) == pytest.approx((0.125 + 2) / 2)


def test_loss_and_accuracy_are_means_over_images() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    loss, accuracy = loss_and_accuracy(logits, torch.tensor([0, 1]))
    assert loss == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    assert accuracy == 1.0
    assert math.isnan(loss_and_accuracy(logits[:0], torch.tensor([], dtype=torch.int64))[0])


def test_temperature_undoes_a_known_overconfidence() -> None:
    torch.manual_seed(0)
    honest = torch.randn(20_000, 10) * 2
    labels = torch.distributions.Categorical(logits=honest).sample()
    assert fit_temperature(honest * 3, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(honest, labels) == pytest.approx(1, rel=0.05)


def test_temperature_is_one_without_mistakes_or_images() -> None:
    assert fit_temperature(torch.eye(10), torch.arange(10)) == 1.0
    assert fit_temperature(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)) == 1.0


def test_evaluation_counts_every_image_once() -> None:
    labels = torch.tensor([0] * 5 + list(range(5, 10)))
    evaluation = evaluate(torch.eye(10), torch.eye(10) / 2, labels)
    assert evaluation.accuracy == 0.6
    assert sum(map(sum, evaluation.confusion)) == 10
    assert evaluation.confusion[0][:5] == [1, 1, 1, 1, 1]


def test_information_measures_are_in_bits() -> None:
    coin, biased = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    certain = torch.tensor([1.0, 0.0]).double()
    assert entropy_bits(coin).item() == 1.0
    assert entropy_bits(certain).item() == 0.0
    assert cross_entropy_bits(certain, biased).item() == 2.0
    assert kl_divergence_bits(coin, coin).item() == 0.0
    expected = 0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75)
    assert kl_divergence_bits(coin, biased).item() == pytest.approx(expected)
    assert kl_divergence_bits(coin, certain).item() == math.inf


def test_evaluation_has_the_information_in_bits() -> None:
    # Both classes are equally frequent, and each is predicted with probability 3/4.
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    bits = evaluate(logits, logits, torch.tensor([0, 1])).bits
    assert bits.entropy == pytest.approx(-0.75 * math.log2(0.75) + 0.5)
    assert bits.cross_entropy == bits.kl_divergence == pytest.approx(-math.log2(0.75))
    assert bits.entropy_of_classes == 1.0
    assert bits.kl_divergence_of_classes == pytest.approx(0.0, abs=1e-9)


def test_reliability_groups_images_by_confidence() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [1.0, 0.0]])
    bins = reliability(probabilities, torch.tensor([0, 1, 0]), bins=10)
    assert [interval.images for interval in bins] == [0] * 8 + [2, 1]
    assert bins[8].accuracy == 0.5
    assert bins[8].confidence == pytest.approx(0.8)
    assert bins[0].accuracy is None


def test_accuracy_at_coverage_ranks_by_confidence() -> None:
    confidence = torch.linspace(0.6, 0.99, 10)
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([1, 1] + [0] * 8)  # wrong about the two least confident images
    points = {point.coverage: point for point in accuracy_at_coverage(probabilities, labels)}
    assert points[0.8].accuracy == 1.0
    assert points[0.9].accuracy == pytest.approx(8 / 9)
    assert points[1.0].accuracy == 0.8
    assert points[0.8].threshold == pytest.approx(confidence[2].item())


def test_mistakes_are_ordered_by_confidence() -> None:
    probabilities = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.6, 0.4]])
    mistakes = most_confident_mistakes(probabilities, torch.tensor([1, 1, 0]))
    assert [(m.image, m.label, m.predicted) for m in mistakes] == [
        (1, 1, 0),
        (0, 1, 0),
    ]
