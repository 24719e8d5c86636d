"""The report of a run: report.html, which holds its own plots; they are also written beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from training.data.dataset import DataSet
from training.evaluation.metrics import Acceptance, Evaluation, PrecisionMetrics
from training.run import plots
from training.run.folder import RunFolder

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left }
tr + tr { border-top: 1px solid #ddd } img { max-width: 100% } code { white-space: pre-wrap }
"""

_CAPTIONS = {
    "loss.png": "Loss by epoch, without penalties. The training loss is the mean during the epoch, "
    "with augmentation and dropout, over the images that the epoch trained on. Recipes that leave "
    "out easy images (easy_below) train mostly on hard ones, so it can lie above the other losses.",
    "accuracy.png": "Accuracy by epoch.",
    "confusion.png": "Images by true and predicted class; the colour counts mistakes only.",
    "reliability.png": "Of all predictions with a confidence of 90 %, 90 % should be right. "
    "Nearly all images are in the last bin; bins with few images mean little.",
    "coverage.png": "The accuracy if the model answers only the images it is most confident about.",
    "acceptance.png": "What is not accepted: a picture with a probability of the outlier classes "
    "above its threshold, or with a most probable digit (these classes counted) below the other. "
    "Digits are the test images, outliers are made up from held-out digits, fonts and noise.",
    "mistakes.png": "The most confident mistakes: true class, predicted class, confidence.",
    "filters.png": "The weights of the first layer: red is positive, blue is negative.",
}


def write_report(
    folder: RunFolder,
    settings: Mapping[str, Any],
    evaluation: Evaluation,
    data: DataSet,
    network: nn.Sequential | None = None,
) -> None:
    """Write report.html and its plots as PNG. Raises TrainingError if they cannot be written.

    `settings` become the last table of the page. Without a network its filters are left out.
    """
    before = evaluation.before_calibration
    pictures: dict[str, bytes | None] = {}
    if folder.epochs:
        pictures["loss.png"] = plots.losses(folder.epochs)
        pictures["accuracy.png"] = plots.accuracies(folder.epochs)
    pictures["confusion.png"] = plots.confusion(evaluation.confusion, data.labels)
    pictures["reliability.png"] = plots.reliability(before.reliability, evaluation.reliability)
    pictures["coverage.png"] = plots.coverage(evaluation.accuracy_at_coverage)
    if accepted := evaluation.acceptance:
        pictures["acceptance.png"] = plots.acceptance(accepted.roc, accepted.histograms)
    pictures["mistakes.png"] = plots.mistakes(evaluation.mistakes, data.test_images, data.labels)
    if network is not None:
        pictures["filters.png"] = plots.first_filters(network)
    drawn = {name: content for name, content in pictures.items() if content is not None}
    for name, content in drawn.items():
        folder.write(name, content)

    title = html.escape(folder.path.name)
    calibrated = ""
    if evaluation.temperature is not None:
        calibrated = f" Probabilities are softmax(logits / {evaluation.temperature:.3f})."
    scores = [
        ("negative log-likelihood (nats)", f"{before.loss:.4f}", f"{evaluation.loss:.4f}"),
        ("Brier score", f"{before.brier:.5f}", f"{evaluation.brier:.5f}"),
        (
            "expected calibration error, 15 bins",
            f"{before.calibration_error:.3%}",
            f"{evaluation.calibration_error:.3%}",
        ),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>{evaluation.accuracy:.2%} of {evaluation.images:,} test images are classified "
        f"correctly, with a standard error of {evaluation.accuracy_standard_error:.2%}."
        f"{calibrated}</p>",
        _table(("on the test set", "before calibration", "after"), scores),
    ]
    if evaluation.precisions:
        parts += ["<h2>Precisions</h2>", _precisions(evaluation.precisions)]
    if accepted:
        parts += ["<h2>What is accepted</h2>", _acceptance(accepted, data.labels)]
    for name, content in drawn.items():
        encoded = base64.b64encode(content).decode()
        parts.append(f"<h2>{html.escape(name.removesuffix('.png').capitalize())}</h2>")
        parts.append(f"<p>{html.escape(_CAPTIONS[name])}</p>")
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{encoded}">')
    classes = [
        (label, f"{accuracy:.2%}")
        for label, accuracy in zip(data.labels, evaluation.accuracy_by_class, strict=True)
    ]
    parts += ["<h2>By class</h2>", _table(("class", "accuracy"), classes)]
    rows = [(name, str(value)) for name, value in settings.items()]
    parts += ["<h2>Settings</h2>", _table(("", ""), rows)]
    folder.write("report.html", "\n".join(parts).encode())


def _acceptance(acceptance: Acceptance, labels: Sequence[str]) -> str:
    refused = [
        *((f"test images, {k}", f"{v:.2%}") for k, v in acceptance.not_accepted.items()),
        *((f"outliers, {k}", f"{v:.2%}") for k, v in acceptance.outliers_not_accepted.items()),
    ]
    accepted = [
        ("right", f"{acceptance.accuracy:.2%}"),
        ("calibration error", f"{acceptance.calibration_error:.3%}"),
    ]
    covered = [("all", f"{acceptance.coverage:.2%}")]
    covered += [
        (label, f"{share:.2%}")
        for label, share in zip(labels, acceptance.coverage_by_class, strict=True)
    ]
    return "\n".join(
        (
            _table(("", "not accepted"), refused),
            _table(("accepted test images", ""), accepted),
            _table(("class", "truth in the prediction set"), covered),
        )
    )


def _precisions(precisions: Mapping[str, PrecisionMetrics]) -> str:
    rows = [
        (
            name,
            f"{metrics.accuracy:.2%}",
            f"{metrics.calibration_error:.3%}",
            f"{metrics.bytes:,}",
            f"{metrics.microseconds['1']:.0f}",
            f"{metrics.microseconds['64']:.0f}",
            str(metrics.published),
        )
        for name, metrics in precisions.items()
    ]
    header = ("", "accuracy", "calibration error", "bytes", "µs for 1", "µs for 64", "published")
    return _table(header, rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
