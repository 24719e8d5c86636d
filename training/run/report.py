"""A run as one page that needs nothing else: report.html, its pictures in it and beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from training.data.dataset import DataSet
from training.run import plots
from training.run.folder import RunFolder

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left }
tr + tr { border-top: 1px solid #ddd } img { max-width: 100% } code { white-space: pre-wrap }
"""

_SAYS = {
    "loss.png": "Loss by epoch, without penalties. That of training is the mean while learning, "
    "with augmentation and dropout, and of the images that the epoch trained on: where a recipe "
    "leaves out easy ones (easy_below), of hard ones mostly. It can lie above the others.",
    "accuracy.png": "Share of right answers by epoch.",
    "confusion.png": "What was taken for what; the colour counts mistakes only.",
    "reliability.png": "Of all answers given with a confidence of 90 %, 90 % should be right. "
    "Nearly all images are in the last bin; bins with few of them mean little.",
    "coverage.png": "How accurate the model is if it may leave out what it is least sure of.",
    "mistakes.png": "The most confident mistakes: true class, class it was taken for, confidence.",
    "filters.png": "The weights that see the pixels: red adds to a unit, blue takes away.",
}


def write_report(
    folder: RunFolder,
    config: Mapping[str, Any],
    network: nn.Sequential | None,
    data: DataSet,
    evaluation: Mapping[str, Any],
) -> None:
    """Write report.html and its pictures as PNG. Raises TrainingError if there is no room."""
    pictures: dict[str, bytes | None] = {}
    if folder.epochs:
        pictures["loss.png"] = plots.losses(folder.epochs)
        pictures["accuracy.png"] = plots.accuracies(folder.epochs)
    pictures["confusion.png"] = plots.confusion(evaluation["confusion"], data.labels)
    before = evaluation["before_calibration"]
    pictures["reliability.png"] = plots.reliability(
        before["reliability"], evaluation["reliability"]
    )
    pictures["coverage.png"] = plots.coverage(evaluation["accuracy_at_coverage"])
    pictures["mistakes.png"] = plots.mistakes(evaluation["mistakes"], data.test_images, data.labels)
    if network is not None:
        pictures["filters.png"] = plots.first_filters(network)

    drawn = {name: content for name, content in pictures.items() if content is not None}
    for name, content in drawn.items():
        folder.write(name, content)
    page = _page(folder.path.name, config, evaluation, drawn, data.labels)
    folder.write("report.html", page.encode())


def _page(
    title: str,
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    labels: tuple[str, ...],
) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _summary(evaluation),
        _table(_honesty_rows(evaluation), ("on the test set", "before calibration", "after")),
    ]
    if precisions := evaluation.get("precisions"):
        parts += ["<h2>Precisions</h2>", _table(*_precision_rows(precisions))]
    for name, content in pictures.items():
        encoded = base64.b64encode(content).decode()
        parts.append(f"<h2>{html.escape(name.removesuffix('.png').capitalize())}</h2>")
        parts.append(f"<p>{html.escape(_SAYS[name])}</p>")
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{encoded}">')
    classes = [
        (label, f"{accuracy:.2%}")
        for label, accuracy in zip(labels, evaluation["accuracy_by_class"], strict=True)
    ]
    parts += ["<h2>By class</h2>", _table(classes, ("class", "accuracy"))]
    recipe = dict(config.get("recipe", {}))
    asked = [(key, str(value)) for key, value in {**config, **recipe}.items() if key != "recipe"]
    parts += ["<h2>What was asked for</h2>", _table(asked, ("", ""))]
    return "\n".join(parts)


def _summary(evaluation: Mapping[str, Any]) -> str:
    calibrated = ""
    if "temperature" in evaluation:
        calibrated = f" Probabilities are softmax(logits / {evaluation['temperature']:.3f})."
    return (
        f"<p>{evaluation['accuracy']:.2%} of {evaluation['images']:,} test images are right, with "
        f"a standard error of {evaluation['accuracy_standard_error']:.2%}.{calibrated}</p>"
    )


def _honesty_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    before = evaluation["before_calibration"]
    rows = [
        ("negative log-likelihood (nats)", "loss", ".4f"),
        ("Brier score", "brier", ".5f"),
        ("expected calibration error, 15 bins", "calibration_error", ".3%"),
    ]
    return [
        (name, f"{before[key]:{form}}", f"{evaluation[key]:{form}}") for name, key, form in rows
    ]


def _precision_rows(
    precisions: Mapping[str, Mapping[str, Any]],
) -> tuple[Sequence[tuple[str, ...]], tuple[str, ...]]:
    rows = [
        (
            name,
            f"{found['accuracy']:.2%}",
            f"{found['calibration_error']:.3%}",
            f"{found['bytes']:,}",
            f"{found['microseconds']['1']:.0f}",
            f"{found['microseconds']['64']:.0f}",
            found["published"],
        )
        for name, found in precisions.items()
    ]
    head = ("", "accuracy", "calibration error", "bytes", "µs for 1", "µs for 64", "published")
    return rows, head


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
