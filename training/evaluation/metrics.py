"""Accuracy of a classifier, and calibration of its probabilities.

Calibration is temperature scaling: all logits are divided by one number T, fitted to minimise the
negative log-likelihood of held-out images (Guo et al. 2017, "On Calibration of Modern Neural
Networks"). It never changes the most probable class.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models import scale

ECE_BINS = 15
COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_MOST_MISTAKES = 24
_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The images whose confidence is in one interval; means are None without images."""

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well probabilities agree with outcomes."""

    loss: float  # negative log-likelihood, nats
    brier: float
    calibration_error: float
    reliability: list[ReliabilityBin]


@dataclass(frozen=True, kw_only=True)
class Bits:
    """The information of predictions in bits, as means over images.

    The true distribution of one image has entropy 0, so the divergence of a prediction from it
    equals their cross-entropy. `*_of_classes` compare the frequencies of the classes in the data
    with the mean prediction.
    """

    entropy: float
    cross_entropy: float
    kl_divergence: float
    entropy_of_classes: float
    kl_divergence_of_classes: float


@dataclass(frozen=True, kw_only=True)
class CoveragePoint:
    """The accuracy if only the most confident share of images is answered."""

    coverage: float  # the share
    accuracy: float
    threshold: float  # the lowest confidence that is still answered


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that was taken for another class, by its index in the data set."""

    image: int
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """Shares not accepted at each threshold of one score."""

    digits: list[float]
    outliers: list[float]
    operating_point: tuple[float, float]  # of digits and of outliers, at the threshold


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Shares of pictures in equal intervals of log10(p / (1 - p)) of one probability p."""

    low: float
    high: float
    digits: list[float]
    outliers: list[float]
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What is accepted of the test images, and of made-up outliers (shares from 0 to 1)."""

    not_accepted: dict[str, float]  # by reason
    accuracy: float  # of accepted images, as is the next
    calibration_error: float
    coverage: float  # share of images whose class is in the prediction set
    coverage_by_class: list[float]
    set_sizes: list[float]  # share of images with a set of 1, 2, ... classes
    outliers_not_accepted: dict[str, float]  # by class
    roc: dict[str, RocCurve]  # by score, as are the histograms
    histograms: dict[str, Histogram]


@dataclass(frozen=True, kw_only=True)
class PrecisionMetrics:
    """One exported file on the test images."""

    accuracy: float
    loss: float
    calibration_error: float
    bytes: int
    microseconds: dict[str, float]  # median time of a run, by number of images
    published: str | None = None  # yes, no or refused


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of evaluation.json. Losses in nats, shares from 0 to 1; calibrated if possible.

    The fields with the default None are filled in by the commands, and left out where unknown.
    """

    temperature: float | None = None
    images: int
    accuracy: float
    accuracy_standard_error: float
    loss: float
    brier: float
    calibration_error: float
    reliability: list[ReliabilityBin]
    before_calibration: Calibration
    bits: Bits
    accuracy_at_coverage: list[CoveragePoint]
    mistakes: list[Mistake]
    accuracy_by_class: list[float]
    confusion: list[list[int]]  # row: true class, column: predicted class
    acceptance: Acceptance | None = None  # of models that refuse what is not a digit
    precisions: dict[str, PrecisionMetrics] | None = None  # fp32, fp16, int8
    microseconds: dict[str, float] | None = None  # median time of a run, by number of images

    def to_json(self) -> dict[str, Any]:
        """Return the known fields as JSON values."""
        return {k: value for k, value in dataclasses.asdict(self).items() if value is not None}


def logits_of(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Return logits float32 [N,classes] on the CPU for uint8 [N,28,28], in evaluation mode."""
    training = network.training
    network.eval()
    with torch.inference_mode():
        parts = [network(scale(chunk.to(device))).cpu() for chunk in images.split(_CHUNK)]
    network.train(training)
    return torch.cat(parts)


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy; NaN for no images."""
    if not len(labels):
        return math.nan, math.nan
    loss = functional.cross_entropy(logits.double(), labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that maximises the likelihood of the held-out labels.

    1 without images, and 1 if all are right: then a lower temperature always fits better.
    """
    if not len(labels) or bool((logits.argmax(1) == labels).all()):
        return 1.0
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")
    exact = logits.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(exact / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return math.exp(log_temperature.item())


def reliability(
    probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS
) -> list[ReliabilityBin]:
    """Return mean confidence and accuracy for each of `bins` equal intervals of confidence."""
    confidence, predicted = probabilities.double().max(1)
    index = (confidence * bins).long().clamp(max=bins - 1)
    right = predicted == labels
    result = []
    for number in range(bins):
        inside = index == number
        images = int(inside.sum())
        result.append(
            ReliabilityBin(
                images=images,
                confidence=confidence[inside].mean().item() if images else None,
                accuracy=right[inside].double().mean().item() if images else None,
            )
        )
    return result


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over the bins.

    Bins are weighted by their number of images (Naeini et al. 2015).
    """
    gaps = (
        interval.images * abs(interval.confidence - interval.accuracy)
        for interval in reliability(probabilities, labels, bins)
        if interval.confidence is not None and interval.accuracy is not None
    )
    return math.fsum(gaps) / len(labels)


def accuracy_at_coverage(probabilities: Tensor, labels: Tensor) -> list[CoveragePoint]:
    """Return the accuracy of selective prediction at each of `COVERAGES`."""
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort(descending=True, stable=True)
    right = (predicted == labels)[order].double().cumsum(0)
    points = []
    for coverage in COVERAGES:
        count = max(1, round(coverage * len(labels)))
        points.append(
            CoveragePoint(
                coverage=coverage,
                accuracy=right[count - 1].item() / count,
                threshold=confidence[order[count - 1]].item(),
            )
        )
    return points


def most_confident_mistakes(probabilities: Tensor, labels: Tensor) -> list[Mistake]:
    """Return the wrongly classified images with the highest confidence, the highest first."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MOST_MISTAKES]
    return [
        Mistake(
            image=index,
            label=int(labels[index]),
            predicted=int(predicted[index]),
            confidence=confidence[index].item(),
        )
        for index in order.tolist()
    ]


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance of the distributions to the truth, 0 to 2 (Brier 1950)."""
    truth = functional.one_hot(labels, probabilities.shape[1]).double()
    return (probabilities.double() - truth).square().sum(1).mean().item()


def entropy_bits(p: Tensor) -> Tensor:
    """H(p) = -sum p log2 p over the last dimension, with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def cross_entropy_bits(p: Tensor, q: Tensor) -> Tensor:
    """H(p, q) = -sum p log2 q: bits per symbol of p in a code that is optimal for q."""
    return -torch.xlogy(p, q).sum(-1) / math.log(2)


def kl_divergence_bits(p: Tensor, q: Tensor) -> Tensor:
    """D(p || q) = H(p, q) - H(p): bits lost by assuming q where p is true; never negative."""
    return cross_entropy_bits(p, q) - entropy_bits(p)


def evaluate(logits: Tensor, calibrated: Tensor, labels: Tensor) -> Evaluation:
    """Return all metrics of one set of images.

    `logits` are float [N,classes], `calibrated` the logits divided by the temperature, `labels`
    int64 [N].
    """
    _, accuracy = loss_and_accuracy(logits, labels)
    classes = logits.shape[1]
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confusion.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    probabilities = torch.softmax(calibrated.double(), 1)
    truth = functional.one_hot(labels, classes).double()
    frequencies = truth.mean(0)
    after = _calibration(calibrated, labels)
    return Evaluation(
        images=len(labels),
        accuracy=accuracy,
        accuracy_standard_error=math.sqrt(accuracy * (1 - accuracy) / len(labels)),
        loss=after.loss,
        brier=after.brier,
        calibration_error=after.calibration_error,
        reliability=after.reliability,
        before_calibration=_calibration(logits, labels),
        bits=Bits(
            entropy=entropy_bits(probabilities).mean().item(),
            cross_entropy=cross_entropy_bits(truth, probabilities).mean().item(),
            kl_divergence=kl_divergence_bits(truth, probabilities).mean().item(),
            entropy_of_classes=entropy_bits(frequencies).item(),
            kl_divergence_of_classes=kl_divergence_bits(frequencies, probabilities.mean(0)).item(),
        ),
        accuracy_at_coverage=accuracy_at_coverage(probabilities, labels),
        mistakes=most_confident_mistakes(probabilities, labels),
        accuracy_by_class=(confusion.diag() / confusion.sum(1).clamp(min=1)).tolist(),
        confusion=confusion.tolist(),
    )


def _calibration(logits: Tensor, labels: Tensor) -> Calibration:
    probabilities = torch.softmax(logits.double(), 1)
    return Calibration(
        loss=loss_and_accuracy(logits, labels)[0],
        brier=brier_score(probabilities, labels),
        calibration_error=calibration_error(probabilities, labels),
        reliability=reliability(probabilities, labels),
    )
