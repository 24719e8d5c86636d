from __future__ import annotations

import math

import pytest
import torch

from training.evaluate import (
    brier_score,
    calibration_error,
    evaluation,
    fit_temperature,
    loss_and_accuracy,
)


def test_calibration_error_of_a_case_done_by_hand() -> None:
    # Two images with confidence 0.8, one right: |0.8 - 0.5|; one with 1.0 and right: no gap.
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert calibration_error(probabilities, labels) == pytest.approx(0.3 * 2 / 3, abs=1e-6)


def test_brier_score_of_a_case_done_by_hand() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    assert brier_score(probabilities, torch.tensor([0, 0])) == pytest.approx((0.125 + 2) / 2)


def test_loss_and_accuracy_are_means_over_images() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    loss, accuracy = loss_and_accuracy(logits, torch.tensor([0, 1]))
    assert loss == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    assert accuracy == 1.0
    assert math.isnan(loss_and_accuracy(logits[:0], torch.tensor([], dtype=torch.int64))[0])


def test_the_temperature_undoes_a_known_overconfidence() -> None:
    torch.manual_seed(0)
    honest = torch.randn(20_000, 10) * 2
    labels = torch.distributions.Categorical(logits=honest).sample()
    assert fit_temperature(honest * 3, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(honest, labels) == pytest.approx(1, rel=0.05)


def test_without_mistakes_there_is_nothing_to_fit() -> None:
    assert fit_temperature(torch.eye(10), torch.arange(10)) == 1.0
    assert fit_temperature(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)) == 1.0


def test_an_evaluation_counts_every_image_once() -> None:
    figures = evaluation(torch.eye(10), torch.tensor([0] * 5 + list(range(5, 10))), 2.0)
    assert figures["accuracy"] == 0.6
    assert sum(map(sum, figures["confusion"])) == 10
    assert figures["confusion"][0][:5] == [1, 1, 1, 1, 1]
