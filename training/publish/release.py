"""From trained weights to a published model: calibrate, test once, export, report, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.data import outliers
from training.data.dataset import DIGITS, output_count
from training.errors import ExportError
from training.evaluation.acceptance import fit_thresholds, measure_acceptance
from training.evaluation.metrics import Evaluation, evaluate, fit_temperature, logits_of
from training.models import REASONS, Classifier, count_parameters
from training.publish.export import IR_VERSION, OPSET, export_quietly, prove
from training.publish.repository import MODEL_FILE, publish
from training.recipes.recipe import to_json
from training.run.checkpoint import Checkpoint, save
from training.run.folder import RunFolder
from training.run.progress import say
from training.state import Run, Trained

PRECISIONS = ("fp16", "int8")
_FOR_REPORTS = (
    "mistakes",
    "reliability",
    "accuracy_at_coverage",
    "roc",
    "histograms",
)  # too long for a card
_OUTLIERS_MEASURED = 5000
# What a picture of anything else than digits becomes when it is served: docs/own-model.md.
PICTURE = {"size": [28, 28], "colour": "grey", "resize": "pad"}


class ReleasePlan(NamedTuple):
    """What to do with a trained network."""

    models: Path  # the repository
    name: str
    publish: bool
    also: tuple[str, ...] = ()  # of PRECISIONS
    force: bool = False  # publish smaller exports even if they lose too much accuracy


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The content of model.json, to which `publish` adds the SHA-256 of the model file."""

    schema: int = 1
    recipe: dict[str, Any]
    seed: int
    data: dict[str, dict[str, str]]  # files: SHA-256 by name
    parameters: int
    temperature: float
    labels: tuple[str, ...]
    thresholds: dict[str, float] | None  # of the decisions in the graph; None without them
    reasons: tuple[str, ...] | None  # what the output `reason` is the index into
    picture: dict[str, Any] | None  # what a picture becomes; None for digits
    batching: bool = True  # every network here works on each image alone
    git_revision: str | None
    opset: int = OPSET
    ir_version: int = IR_VERSION
    versions: dict[str, str]
    evaluation: dict[str, Any]  # evaluation.json without its long lists
    model: str
    precision: str
    accuracy: float  # of this file on the test images, as is the loss
    loss: float


def release(trained: Trained, run: Run, folder: RunFolder, plan: ReleasePlan) -> None:
    """Calibrate on the held-out images, use the test set once, report, publish.

    Raises ExportError, after the fp32 model is published, if a smaller export lost too much
    accuracy.
    """
    from training.run.report import write_report  # matplotlib takes a second

    recipe, split, data, cpu = run.recipe, run.split, run.split.data, torch.device("cpu")
    classes = len(data.labels)
    classifier = Classifier(trained.network.cpu().eval(), classes=classes)
    if len(split.validation_labels):
        logits = logits_of(classifier.network, split.validation_images, cpu)
        temperature = fit_temperature(logits[:, :classes], split.validation_labels)
        classifier.temperature = temperature
        if output_count(recipe, data.labels) > classes:
            thresholds = fit_thresholds(logits, split.validation_labels, classes, temperature)
            classifier.thresholds = thresholds
    checkpoint = Checkpoint(
        network=classifier.network,
        recipe=recipe,
        seed=run.seed,
        epoch=trained.epoch,
        temperature=classifier.temperature,
        labels=data.labels,
        thresholds=classifier.thresholds,
    )
    save(folder.checkpoint, checkpoint)

    logits = logits_of(classifier.network, data.test_images, cpu)[:, :classes]
    evaluation = evaluate(logits, logits / classifier.temperature, data.test_labels)
    evaluation = dataclasses.replace(evaluation, temperature=classifier.temperature)
    if classifier.thresholds:
        # Made from held-out digits, with other random numbers than those of training.
        others = outliers.make(
            split.validation_images, split.validation_labels, _OUTLIERS_MEASURED, seed=1
        )
        evaluation = dataclasses.replace(
            evaluation,
            acceptance=measure_acceptance(classifier, data.test_images, data.test_labels, others),
        )
    exports: dict[str, bytes] = {}
    if plan.publish or plan.also:
        metadata = {"recipe": recipe.name, "seed": str(run.seed)}
        exports["fp32"] = export_quietly(classifier, metadata)
        prove(exports["fp32"], classifier, data.test_images, data.test_labels)
    if plan.also:
        from training.publish import precision  # the quantiser takes a second

        if "fp16" in plan.also:
            exports["fp16"] = precision.to_fp16(classifier, metadata)
        if "int8" in plan.also:
            exports["int8"] = precision.to_int8(exports["fp32"], metadata, split.images)
        precisions = {name: precision.measure(content, data) for name, content in exports.items()}
        for name, metrics in precisions.items():
            too_bad = precision.loses_too_much(metrics.accuracy, precisions["fp32"].accuracy)
            published = "refused" if too_bad and not plan.force else "yes" if plan.publish else "no"
            precisions[name] = dataclasses.replace(metrics, published=published)
            times = ", ".join(f"{time:.0f} µs for {n}" for n, time in metrics.microseconds.items())
            say(f"{name}: accuracy {metrics.accuracy:.2%}, {metrics.bytes:,} bytes, {times}.")
        evaluation = dataclasses.replace(evaluation, precisions=precisions)

    folder.write_json("evaluation.json", evaluation.to_json())
    settings = dataclasses.asdict(folder.read_config())
    settings |= settings.pop("recipe")
    write_report(folder, settings, evaluation, data, classifier.network)
    say(
        f"Test accuracy {evaluation.accuracy:.2%} ± {evaluation.accuracy_standard_error:.2%}, "
        f"loss {evaluation.loss:.4f}, calibration error {evaluation.calibration_error:.2%} "
        f"(temperature {classifier.temperature:.3f})."
    )
    if accepted := evaluation.acceptance:
        say(
            f"Not accepted: {sum(accepted.not_accepted.values()):.2%} of the test images; "
            f"{accepted.accuracy:.2%} of the others are right."
        )
    say(f"Report: {folder.path / 'report.html'}")
    if plan.publish:
        _publish(exports, evaluation, classifier, run, plan)
    else:
        say(f"Not published. To publish: mnist-train --from-checkpoint {folder.checkpoint}")


def _publish(
    exports: dict[str, bytes],
    evaluation: Evaluation,
    classifier: Classifier,
    run: Run,
    plan: ReleasePlan,
) -> None:
    card = ModelCard(
        recipe=to_json(run.recipe),
        seed=run.seed,
        data={"files": run.split.data.sha256},
        parameters=count_parameters(classifier.network),
        temperature=classifier.temperature,
        labels=run.split.data.labels,
        thresholds=classifier.thresholds._asdict() if classifier.thresholds else None,
        reasons=REASONS if classifier.thresholds else None,
        picture=None if run.split.data.labels == DIGITS else PICTURE,
        git_revision=git_revision(),
        versions=versions(),
        evaluation=_without_lists(evaluation.to_json()),
        model=plan.name,
        precision="fp32",
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
    )
    refused = []
    for name, content in exports.items():
        own = card
        if evaluation.precisions:
            metrics = evaluation.precisions[name]
            if metrics.published == "refused":
                refused.append(name)
                continue
            own = dataclasses.replace(
                card,
                model=plan.name if name == "fp32" else f"{plan.name}-{name}",
                precision=name,
                accuracy=metrics.accuracy,
                loss=metrics.loss,
            )
        published = publish(plan.models, own.model, content, dataclasses.asdict(own))
        say(f"Published {published / MODEL_FILE}.")
    say(f"Serve it with: mnist-serve --models {plan.models}")
    if refused:
        raise ExportError(
            f"Not published for losing more than 0.1 % accuracy: {', '.join(refused)}; see the "
            "report. Add --force to publish all the same."
        )


def _without_lists(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_lists(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _FOR_REPORTS
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine the weights and the file."""
    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def git_revision() -> str | None:
    """Return the revision of the source tree that this code is in; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 (a constant command)
    return None
