"""mnist-evaluate: measure a model file or a checkpoint on any data set, with ONNX Runtime."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.data.dataset import DataSet
from training.data.sources import load_named
from training.errors import TrainingError, UsageError
from training.evaluation.metrics import Evaluation, evaluate
from training.evaluation.onnx_model import OnnxModel, load_onnx
from training.files import write_atomically
from training.run import checkpoint
from training.run.folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the metrics of a model. Returns 0, 1 on failure, 2 on misuse."""
    options = parser().parse_args(arguments)
    try:
        _run(options)
    except TrainingError as error:
        print(f"mnist-evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    model, labels = _load(options.model)
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
    if labels and labels != data.labels:
        print(f"Note: {options.model} was trained on {', '.join(labels)}.", file=sys.stderr)
    evaluation = evaluate(outputs.logits, outputs.calibrated, data.test_labels)
    microseconds = model.microseconds(data.test_images)
    evaluation = dataclasses.replace(evaluation, microseconds=microseconds)
    print(_text(options.model, evaluation))
    if options.json:
        try:
            content = json.dumps(evaluation.to_json(), indent=2).encode() + b"\n"
            write_atomically(options.json, content)
        except OSError as error:
            raise TrainingError(f"{options.json} cannot be written: {error.strerror}.") from error
    if options.report:
        _write_report(options, data, evaluation)


def _load(path: Path) -> tuple[OnnxModel, tuple[str, ...]]:
    """Load a model and its labels, which are empty where its card does not have them.

    A checkpoint is loaded as the ONNX file that would be published of it.
    """
    if path.suffix != ".safetensors":
        model, card = load_onnx(path)
        return model, tuple(card.get("labels", ()))
    from training.publish.export import export_quietly

    saved = checkpoint.read(path)
    classifier = checkpoint.classifier_of(saved)
    content = export_quietly(classifier, {"recipe": saved.recipe.name, "seed": str(saved.seed)})
    return OnnxModel(content, str(path)), saved.labels


def _text(model: Path, evaluation: Evaluation) -> str:
    before, bits = evaluation.before_calibration, evaluation.bits
    coverage = "  ".join(
        f"{point.accuracy:.2%} at {point.coverage:.1%}" for point in evaluation.accuracy_at_coverage
    )
    times = (evaluation.microseconds or {}).items()
    return "\n".join(
        (
            f"{model} on {evaluation.images:,} images",
            f"accuracy             {evaluation.accuracy:.2%} ± "
            f"{evaluation.accuracy_standard_error:.2%}",
            "                     calibrated  (not calibrated)",
            f"log loss, nats       {evaluation.loss:.4f}      ({before.loss:.4f})",
            f"Brier score          {evaluation.brier:.5f}     ({before.brier:.5f})",
            f"calibration error    {evaluation.calibration_error:.3%}      "
            f"({before.calibration_error:.3%})",
            f"bits                 entropy {bits.entropy:.4f}, cross-entropy "
            f"{bits.cross_entropy:.4f}, KL divergence {bits.kl_divergence:.4f}",
            f"accuracy at coverage {coverage}",
            f"one thread           {', '.join(f'{time:.0f} µs for {n}' for n, time in times)}",
        )
    )


def _write_report(options: argparse.Namespace, data: DataSet, evaluation: Evaluation) -> None:
    from training.run.report import write_report  # matplotlib takes a second

    try:
        options.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{options.report} cannot be made: {error.strerror}.") from error
    settings = {"model": str(options.model), "data": options.data}
    write_report(RunFolder(options.report), settings, evaluation, data)
    print(f"Report: {options.report / 'report.html'}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(
        prog="mnist-evaluate",
        usage="%(prog)s MODEL [--data DATA] [--json FILE] [--report FOLDER]",
        description="Measure a model on a test set, with ONNX Runtime.",
        epilog="example:\n  mnist-evaluate models/mnist/2/model.onnx --json metrics.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add = command_line.add_argument_group("what is measured").add_argument
    add(
        "model",
        type=Path,
        metavar="MODEL",
        help="model.onnx, or a checkpoint.safetensors of mnist-train",
    )
    add(
        "--data",
        default="mnist",
        help="mnist, fashion, or a folder of images or of IDX files (default: mnist)",
    )
    add("--all", action="store_true", help="also measure on the training images")
    add = command_line.add_argument_group("output").add_argument
    add("-h", "--help", action="help", help="show this text and exit")
    add("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    add("--report", type=Path, metavar="FOLDER", help="also write report.html into this folder")
    return command_line


if __name__ == "__main__":
    sys.exit(main())
