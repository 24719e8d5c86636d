"""What a classifier of digits accepts: its thresholds, and how they do on digits and on others.

Both thresholds are quantiles of the scores of held-out digits: a small share of digits is given up,
and what is made up from other things decides nothing here. Prediction sets are split conformal
(Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Angelopoulos and Bates
2021, "A Gentle Introduction to Conformal Prediction"): of new digits that are exchangeable with the
held-out ones, at least the share `COVERAGE` have their digit in the set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.data.outliers import CLASSES
from training.evaluation.metrics import (
    Acceptance,
    Histogram,
    RocCurve,
    calibration_error,
    logits_of,
)
from training.models import REASONS, Classifier, Scores, Thresholds, scores_of

COVERAGE = 0.999
# Shares of held-out digits that are not accepted: as outliers, and in all.
_OUTLIERS, _NOT_ACCEPTED = 0.005, 0.017
_CONTRAST = 0.1  # MNIST's faintest digit spans three quarters of the range
_BINS, _POINTS, _CHUNK = 60, 200, 1000


def fit_thresholds(logits: Tensor, labels: Tensor, classes: int, temperature: float) -> Thresholds:
    """Fit the thresholds on held-out digits: logits float32 [N,classes+2], labels int64 [N]."""
    count = len(labels)
    scores = scores_of(logits, classes, temperature)
    outlier = _between(scores.outlier, count - 1 - math.floor(_OUTLIERS * count))
    kept = scores.confidence[scores.outlier <= outlier]
    unsure = math.floor(_NOT_ACCEPTED * count) - (count - len(kept))
    confidence = _between(kept, unsure - 1) if unsure > 0 else 0.0
    # The smallest of n + 1 exchangeable values is as likely to be the new one as any other, so the
    # bound is the floor((n + 1) * 0.001)-th smallest probability of the true class.
    truth = torch.softmax(logits[:, :classes] / temperature, 1)[torch.arange(count), labels]
    rank = math.floor((count + 1) * (1 - COVERAGE) + 1e-9)
    least = truth.sort().values[rank - 1].item() if rank else 0.0
    return Thresholds(_CONTRAST, outlier, confidence, least)


def measure_acceptance(
    classifier: Classifier, images: Tensor, labels: Tensor, outliers: tuple[Tensor, Tensor]
) -> Acceptance:
    """Measure on digits, uint8 [N,28,28] with int64 [N], and on outliers of the same types.

    Digits among the outliers are ignored. The classifier must have thresholds.
    """
    assert classifier.thresholds is not None
    others, kinds = (part[outliers[1] >= classifier.classes] for part in outliers)
    _, probabilities, accepted, reason, sets = _outputs(classifier, images)
    _, _, accepted_others, _, _ = _outputs(classifier, others)
    covered = sets[torch.arange(len(labels)), labels].double()
    right = (probabilities.argmax(1) == labels)[accepted].double()
    digits, made_up = _scores(classifier, images), _scores(classifier, others)
    limits = {
        "outlier": classifier.thresholds.outlier,
        "confidence": classifier.thresholds.confidence,
    }
    return Acceptance(
        not_accepted={
            word: (reason == code).double().mean().item()
            for code, word in enumerate(REASONS)
            if word
        },
        accuracy=right.mean().item(),
        calibration_error=calibration_error(probabilities[accepted], labels[accepted]),
        coverage=covered.mean().item(),
        coverage_by_class=[
            covered[labels == label].mean().item() for label in range(classifier.classes)
        ],
        set_sizes=(torch.bincount(sets.sum(1), minlength=classifier.classes + 1)[1:] / len(labels))
        .double()
        .tolist(),
        outliers_not_accepted={
            name: (~accepted_others[kinds == classifier.classes + number]).double().mean().item()
            for number, name in enumerate(CLASSES)
        },
        roc={
            name: _roc(getattr(digits, name), getattr(made_up, name), limit, name == "confidence")
            for name, limit in limits.items()
        },
        histograms={
            name: _histogram(getattr(digits, name), getattr(made_up, name), limit)
            for name, limit in limits.items()
        },
    )


def _between(values: Tensor, index: int) -> float:
    """Return a number between the `index`-th smallest value, from 0, and the next one.

    So rounding differs for as few images as possible. The middle is that of the log-odds.
    """
    index = max(0, min(index, len(values) - 2))
    low, high = values.sort().values[index : index + 2].double().clamp(1e-30, 1 - 1e-9)
    middle = (torch.logit(low) + torch.logit(high)) / 2
    return torch.sigmoid(middle).item()


def _outputs(classifier: Classifier, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        chunks = [classifier.eval()(chunk) for chunk in images.split(_CHUNK)]
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _scores(classifier: Classifier, images: Tensor) -> Scores:
    logits = logits_of(classifier.network, images, torch.device("cpu"))
    return scores_of(logits, classifier.classes, classifier.temperature)


def _roc(digits: Tensor, outliers: Tensor, threshold: float, below: bool) -> RocCurve:
    """Return the curve of refusing values above a threshold, or `below` it."""
    sign = -1.0 if below else 1.0
    order = (sign * digits).sort(descending=True).values
    # Closer together where few digits are refused.
    ranks = (torch.linspace(0, 1, _POINTS).square() * (len(order) - 1)).long()
    bounds = order[ranks]
    shares = [
        [(sign * values > bound).double().mean().item() for bound in bounds]
        for values in (digits, outliers)
    ]
    at = [
        (sign * values > sign * threshold).double().mean().item() for values in (digits, outliers)
    ]
    return RocCurve(digits=shares[0], outliers=shares[1], operating_point=(at[0], at[1]))


def _histogram(digits: Tensor, outliers: Tensor, threshold: float) -> Histogram:
    low, high = -10.0, 10.0

    def shares(values: Tensor) -> list[float]:
        odds = torch.logit(values.double(), eps=1e-10) / math.log(10)
        counts = torch.histc(odds.clamp(low, high), _BINS, low, high)
        return (counts / len(values)).tolist()

    odds = math.log10(max(threshold, 1e-30) / max(1 - threshold, 1e-30))
    return Histogram(
        low=low, high=high, digits=shares(digits), outliers=shares(outliers), threshold=odds
    )
