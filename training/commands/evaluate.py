"""mnist-evaluate: any model file or checkpoint, through ONNX Runtime, on any data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.data.dataset import DataSet
from training.data.sources import load_named
from training.errors import TrainingError, UsageError
from training.evaluation.metrics import evaluation
from training.evaluation.onnx_model import OnnxModel, load_onnx
from training.files import write_atomically
from training.models import Classifier
from training.run import checkpoint
from training.run.folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a model. Returns 0, 1 on failure, 2 on misuse."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except TrainingError as error:
        print(f"mnist-evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    model, card = _load(options.model)
    data = load_named(options.data)
    if options.all:
        data = data._replace(
            test_images=torch.cat([data.test_images, data.train_images]),
            test_labels=torch.cat([data.test_labels, data.train_labels]),
        )
    outputs = model.outputs(data.test_images)
    if (classes := outputs.logits.shape[1]) != len(data.labels):
        raise UsageError(
            f"{options.model} tells {classes} classes apart, and {options.data} has "
            f"{len(data.labels)}: {', '.join(data.labels)}."
        )
    named = tuple(card.get("labels", data.labels))
    if named != data.labels:
        print(f"Mind that {options.model} was made for {', '.join(named)}.", file=sys.stderr)
    figures = evaluation(*outputs, data.test_labels)
    figures["microseconds"] = model.microseconds(data.test_images)
    print(_text(options.model, figures))
    if options.json:
        _write_json(options.json, figures)
    if options.report:
        _write_report(options, data, figures)


def _load(path: Path) -> tuple[OnnxModel, dict[str, Any]]:
    """Load an ONNX file, or a checkpoint as the ONNX file that would be published of it."""
    if path.suffix != ".safetensors":
        return load_onnx(path)
    from training.publish.export import export_quietly

    found = checkpoint.read(path)
    classifier = Classifier(found.network, found.temperature).eval()
    content = export_quietly(classifier, {"recipe": found.recipe.name, "seed": str(found.seed)})
    return OnnxModel(content, str(path)), {"labels": found.labels}


def _text(model: Path, figures: dict[str, Any]) -> str:
    before, bits = figures["before_calibration"], figures["bits"]
    coverage = "  ".join(
        f"{p['accuracy']:.2%} at {p['coverage']:.1%}" for p in figures["accuracy_at_coverage"]
    )
    times = ", ".join(f"{took:.0f} µs for {n}" for n, took in figures["microseconds"].items())
    return "\n".join(
        (
            f"{model} on {figures['images']:,} images",
            f"accuracy             {figures['accuracy']:.2%} ± "
            f"{figures['accuracy_standard_error']:.2%}",
            "                     calibrated  (not calibrated)",
            f"log loss, nats       {figures['loss']:.4f}      ({before['loss']:.4f})",
            f"Brier score          {figures['brier']:.5f}     ({before['brier']:.5f})",
            f"calibration error    {figures['calibration_error']:.3%}      "
            f"({before['calibration_error']:.3%})",
            f"bits                 entropy {bits['entropy']:.4f}, cross-entropy "
            f"{bits['cross_entropy']:.4f}, KL divergence {bits['kl_divergence']:.4f}",
            f"accuracy at coverage {coverage}",
            f"one thread           {times}",
        )
    )


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(figures, indent=2).encode() + b"\n")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}.") from error


def _write_report(options: argparse.Namespace, data: DataSet, figures: dict[str, Any]) -> None:
    from training.run.report import write_report  # matplotlib takes a second

    try:
        options.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{options.report} cannot be made: {error.strerror}.") from error
    config = {"model": str(options.model), "data": options.data}
    write_report(RunFolder(options.report), config, None, data, figures)
    print(f"Look at it: {options.report / 'report.html'}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnist-evaluate", description="Measure a model on a test set, with ONNX Runtime."
    )
    add = parser.add_argument
    add("model", type=Path, help="model.onnx, or a checkpoint.safetensors of mnist-train")
    add(
        "--data",
        default="mnist",
        help="mnist, fashion, or a folder: of images, or of IDX files (default: mnist)",
    )
    add("--all", action="store_true", help="measure on the training images, too")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    add("--report", type=Path, metavar="FOLDER", help="also write report.html into this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
