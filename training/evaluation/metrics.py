"""How good a classifier is, and how honest its probabilities are.

Calibration is temperature scaling: one number T, fitted on held-out images by their negative
log-likelihood, by which all logits are divided (Guo et al. 2017, "On Calibration of Modern Neural
Networks"). It never changes which digit is the most probable.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models import scale

ECE_BINS = 15
COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_MOST_MISTAKES = 24
_CHUNK = 1000


def logits_of(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Logits float32 [N,10] on the CPU for uint8 images [N,28,28], in evaluation mode."""
    training = network.training
    network.eval()
    with torch.inference_mode():
        parts = [network(scale(chunk.to(device))).cpu() for chunk in images.split(_CHUNK)]
    network.train(training)
    return torch.cat(parts)


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and share of correct answers; NaN for no images."""
    if not len(labels):
        return math.nan, math.nan
    loss = functional.cross_entropy(logits.double(), labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that gives the held-out labels the greatest likelihood.

    1 if there are no images, or if every one is right: then any sharpening fits ever better.
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
) -> list[dict[str, Any]]:
    """Images, mean confidence and accuracy in each of so many equal bins of confidence."""
    confidence, predicted = probabilities.double().max(1)
    index = (confidence * bins).long().clamp(max=bins - 1)
    found = []
    for each in range(bins):
        inside = index == each
        images = int(inside.sum())
        found.append(
            {
                "images": images,
                "confidence": confidence[inside].mean().item() if images else None,
                "accuracy": (predicted == labels)[inside].double().mean().item()
                if images
                else None,
            }
        )
    return found


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |confidence - accuracy| over equal bins of confidence.

    Weighted by the images in each bin (Naeini et al. 2015).
    """
    gaps = (
        each["images"] * abs(each["confidence"] - each["accuracy"])
        for each in reliability(probabilities, labels, bins)
        if each["images"]
    )
    return math.fsum(gaps) / len(labels)


def accuracy_at_coverage(probabilities: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Selective prediction: the accuracy if only the most confident share is answered.

    With the lowest confidence that is still answered, which is the threshold to set for it.
    """
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort(descending=True, stable=True)
    right = (predicted == labels)[order].double().cumsum(0)
    points = []
    for share in COVERAGES:
        count = max(1, round(share * len(labels)))
        accuracy = right[count - 1].item() / count
        threshold = confidence[order[count - 1]].item()
        points.append({"coverage": share, "accuracy": accuracy, "threshold": threshold})
    return points


def most_confident_mistakes(probabilities: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The images taken for another class with the most confidence, by their number in the set."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MOST_MISTAKES]
    return [
        {
            "image": index,
            "label": int(labels[index]),
            "predicted": int(predicted[index]),
            "confidence": confidence[index].item(),
        }
        for index in order.tolist()
    ]


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared distance between distribution and truth, 0 to 2 (Brier 1950)."""
    truth = functional.one_hot(labels, probabilities.shape[1]).double()
    return (probabilities.double() - truth).square().sum(1).mean().item()


def entropy_bits(p: Tensor) -> Tensor:
    """H(p) = -sum p log2 p of each distribution in the last dimension, with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def cross_entropy_bits(p: Tensor, q: Tensor) -> Tensor:
    """H(p, q) = -sum p log2 q: bits it takes to tell of p in a code made for q."""
    return -torch.xlogy(p, q).sum(-1) / math.log(2)


def kl_divergence_bits(p: Tensor, q: Tensor) -> Tensor:
    """D(p || q) = H(p, q) - H(p): bits lost by believing q where p is true; never negative."""
    return cross_entropy_bits(p, q) - entropy_bits(p)


def _bits(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """The information of predictions in bits, as means over images.

    The truth about one image is certain: its entropy is 0, so that the divergence of a prediction
    from it equals their cross-entropy. Over all images there is a distribution of classes to
    compare with how often each is predicted.
    """
    predicted = probabilities.double()
    truth = functional.one_hot(labels, predicted.shape[1]).double()
    classes = truth.mean(0)
    return {
        "entropy": entropy_bits(predicted).mean().item(),
        "cross_entropy": cross_entropy_bits(truth, predicted).mean().item(),
        "kl_divergence": kl_divergence_bits(truth, predicted).mean().item(),
        "entropy_of_classes": entropy_bits(classes).item(),
        "kl_divergence_of_classes": kl_divergence_bits(classes, predicted.mean(0)).item(),
    }


def _honesty(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    probabilities = torch.softmax(logits.double(), 1)
    return {
        "loss": loss_and_accuracy(logits, labels)[0],
        "brier": brier_score(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
        "reliability": reliability(probabilities, labels),
    }


def evaluation(logits: Tensor, calibrated: Tensor, labels: Tensor) -> dict[str, Any]:
    """All figures of one set of images, as JSON values; losses in nats, shares from 0 to 1.

    `calibrated` are the logits divided by the temperature.
    """
    _, accuracy = loss_and_accuracy(logits, labels)
    classes = logits.shape[1]
    probabilities = torch.softmax(calibrated.double(), 1)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confusion.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    return {
        "images": len(labels),
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(labels)),
        **_honesty(calibrated, labels),
        "before_calibration": _honesty(logits, labels),
        "bits": _bits(probabilities, labels),
        "accuracy_at_coverage": accuracy_at_coverage(probabilities, labels),
        "mistakes": most_confident_mistakes(probabilities, labels),
        "accuracy_by_class": (confusion.diag() / confusion.sum(1).clamp(min=1)).tolist(),
        "confusion": confusion.tolist(),  # row: true class, column: predicted class
    }
