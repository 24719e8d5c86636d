"""The plots of a run as PNG bytes, each from metrics that the run also writes as JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # works without a display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from training.evaluation.metrics import (
    CoveragePoint,
    Histogram,
    Mistake,
    ReliabilityBin,
    RocCurve,
)
from training.state import EpochMetrics

_MOST_FILTERS = 64
_COLUMNS = 8
_MARK_UP_TO = 20  # classes whose confusion counts are written out


def losses(epochs: Sequence[EpochMetrics]) -> bytes:
    """Plot losses by epoch, on a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _lines(axes, epochs, ("train_loss", "validation_loss", "test_loss"))
    axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss", yscale="log")
    return _png(figure)


def accuracies(epochs: Sequence[EpochMetrics]) -> bytes:
    """Plot accuracies by epoch; the training accuracy is with augmentation and dropout."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _lines(axes, epochs, ("train_accuracy", "validation_accuracy", "test_accuracy"))
    axes.set(xlabel="epoch", ylabel="accuracy", title="Accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return _png(figure)


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """Plot the confusion matrix. Colour shows mistakes only: right answers would outshine them."""
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    mistakes = [
        [0 if row == column else count for column, count in enumerate(line)]
        for row, line in enumerate(counts)
    ]
    highest = max(1, *(max(line) for line in mistakes))
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=highest)
    if len(labels) <= _MARK_UP_TO:
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                dark = row != column and count > 0.6 * highest
                colour = "white" if dark else "black"
                if count:
                    axes.text(column, row, str(count), ha="center", va="center", color=colour)
    places = range(len(labels))
    axes.set(xlabel="predicted", ylabel="true", title="Confusion: images by class")
    axes.set_xticks(places, labels, rotation=45 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(places, labels)
    return _png(figure)


def reliability(before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin]) -> bytes:
    """Plot accuracy by confidence; perfectly calibrated bins lie on the diagonal."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(6, 6.5), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    upper.plot((0, 1), (0, 1), color="grey", linestyle="--", label="calibrated perfectly")
    for bins, name in ((before, "before calibration"), (after, "after calibration")):
        full = [interval for interval in bins if interval.images]
        confidence = [interval.confidence for interval in full]
        accuracy = [interval.accuracy for interval in full]
        upper.plot(confidence, accuracy, marker="o", label=name, alpha=0.8)
        lower.plot(confidence, [interval.images for interval in full], marker="o", alpha=0.8)
    upper.set(ylabel="accuracy", title="Reliability", xlim=(0, 1.02), ylim=(0, 1.02))
    lower.set(xlabel="confidence", ylabel="images", yscale="log")
    upper.legend()
    for axes in (upper, lower):
        axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def coverage(points: Sequence[CoveragePoint]) -> bytes:
    """Plot the accuracy among the most confident share of images, by that share."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([p.coverage for p in points], [p.accuracy for p in points], marker="o")
    axes.set(
        xlabel="share of images answered, the most confident first",
        ylabel="accuracy among them",
        title="Accuracy at coverage",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def acceptance(curves: Mapping[str, RocCurve], bars: Mapping[str, Histogram]) -> bytes:
    """Plot what each score refuses, and how it is distributed, with the thresholds in use."""
    figure, rows = plt.subplots(
        len(bars), 2, figsize=(9, 3.4 * len(bars)), layout="constrained", squeeze=False
    )
    for (left, right), (name, bar) in zip(rows, bars.items(), strict=True):
        curve = curves[name]
        left.plot(curve.digits, curve.outliers)
        left.plot(*curve.operating_point, marker="o", linestyle="", label="operating point")
        left.set(
            xlabel="digits not accepted",
            ylabel="outliers not accepted",
            title=f"ROC of {name}",
            xlim=(0, 1),
        )
        left.set_xscale("symlog", linthresh=0.001)
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        edges = np.linspace(bar.low, bar.high, len(bar.digits) + 1).tolist()
        right.stairs(bar.digits, edges, fill=True, alpha=0.5, label="digits")
        right.stairs(bar.outliers, edges, fill=True, alpha=0.5, label="outliers")
        right.axvline(bar.threshold, color="black", linestyle="--", label="threshold")
        right.set(xlabel="log10(p / (1 - p))", ylabel="share", yscale="log", title=name)
        for axes in (left, right):
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize=8)
    return _png(figure)


def mistakes(confident: Sequence[Mistake], images: Tensor, labels: Sequence[str]) -> bytes | None:
    """Show the most confident mistakes among the images [N,28,28]; None if there is none."""
    if not confident:
        return None
    shown = [images[mistake.image].numpy() for mistake in confident]
    figure, axes, corners = _grid(shown, gap=14, cmap="gray_r", limit=(0, 255))
    for (x, y), mistake in zip(corners, confident, strict=True):
        true, predicted = labels[mistake.label], labels[mistake.predicted]
        words = f"{true} as {predicted}\n{mistake.confidence:.1%}"
        axes.text(x + 14, y - 1, words, ha="center", va="bottom", fontsize=8)
    return _png(figure)


def first_filters(network: nn.Sequential) -> bytes | None:
    """Show the weights of the first layer: its kernels, or one picture per dense unit."""
    layer = next((layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)), None)
    if layer is None:
        return None
    weights = layer.weight.detach().cpu()[:_MOST_FILTERS]
    pictures = weights.reshape(len(weights), 28, 28) if weights.ndim == 2 else weights[:, 0]
    # Each with its own scale.
    shown = [(picture / max(float(picture.abs().max()), 1e-12)).numpy() for picture in pictures]
    figure, _, _ = _grid(shown, gap=max(1, shown[0].shape[0] // 10), cmap="RdBu_r", limit=(-1, 1))
    return _png(figure)


def heat_map(
    grid: Sequence[Sequence[float | str | None]],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
) -> bytes:
    """Plot validation accuracy by two knobs; a cell may hold a word instead, or nothing.

    `rows` and `columns` are the name of a knob and its values.
    """
    figure, axes = plt.subplots(
        figsize=(2.5 + 1.1 * len(columns[1]), 1.8 + 0.7 * len(rows[1])), layout="constrained"
    )
    numbers = [[cell if isinstance(cell, float) else math.nan for cell in line] for line in grid]
    axes.imshow(numbers, cmap="viridis", aspect="auto")
    for y, line in enumerate(grid):
        for x, cell in enumerate(line):
            text = f"{cell:.2%}" if isinstance(cell, float) else cell or ""
            box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0}
            axes.text(x, y, text, ha="center", va="center", bbox=box if text else None)
    axes.set(xlabel=columns[0], ylabel=rows[0], title="Validation accuracy")
    axes.set_xticks(range(len(columns[1])), columns[1])
    axes.set_yticks(range(len(rows[1])), rows[1])
    return _png(figure)


def _lines(axes: Axes, epochs: Sequence[EpochMetrics], names: Sequence[str]) -> None:
    numbers = [metrics.epoch for metrics in epochs]
    for name in names:
        values = [getattr(metrics, name) for metrics in epochs]
        if None not in values:
            axes.plot(numbers, values, marker=".", label=name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _grid(
    pictures: Sequence[np.ndarray], *, gap: int, cmap: str, limit: tuple[float, float]
) -> tuple[Figure, Axes, list[tuple[int, int]]]:
    """Show pictures [side,side], `gap` pixels apart, in rows; also returns their corners (x, y).

    They are joined into one image: axes for each would take a second to draw.
    """
    step = len(pictures[0]) + gap
    rows = math.ceil(len(pictures) / _COLUMNS)
    joined = np.full((rows * step, _COLUMNS * step), np.nan)
    corners = []
    for index, picture in enumerate(pictures):
        row, column = divmod(index, _COLUMNS)
        x, y = column * step + gap // 2, row * step + gap
        joined[y : y + len(picture), x : x + len(picture)] = picture
        corners.append((x, y))
    figure = plt.figure(figsize=(_COLUMNS, rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(joined, cmap=cmap, vmin=limit[0], vmax=limit[1], aspect="auto")
    return figure, axes, corners


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    return content.getvalue()
