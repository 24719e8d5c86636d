"""From trained weights to what is published: calibrate, test once, report, export, publish."""

from __future__ import annotations

import contextlib
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.data.dataset import DataSet, split
from training.errors import ExportError
from training.evaluation.metrics import evaluation, fit_temperature, logits_of
from training.models import Classifier, count_parameters
from training.publish.export import IR_VERSION, OPSET, export_quietly, prove
from training.publish.repository import MODEL_FILE, publish
from training.recipes import recipe as recipes
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.run.folder import RunFolder
from training.run.progress import say
from training.state import Trained

PRECISIONS = ("fp16", "int8")
_FOR_REPORTS = ("mistakes", "reliability", "accuracy_at_coverage")  # too long for a card


class ReleasePlan(NamedTuple):
    """What to make of a trained network. `force` publishes what loses too much accuracy, too."""

    models: Path
    name: str
    publish: bool
    also: tuple[str, ...] = ()  # of PRECISIONS
    force: bool = False


def release(
    trained: Trained, recipe: Recipe, seed: int, data: DataSet, folder: RunFolder, plan: ReleasePlan
) -> None:
    """Calibrate on the held-out images, look at the test set once, report, publish.

    Raises ExportError, after the fp32 model is published, if another one lost too much accuracy.
    """
    from training.run.report import write_report  # matplotlib takes a second

    classifier = _calibrated(trained, recipe, data)
    temperature = classifier.temperature
    checkpoint.save(
        folder.checkpoint,
        checkpoint.Checkpoint(
            classifier.network, recipe, seed, trained.epoch, temperature, data.labels
        ),
    )
    test_logits = logits_of(classifier.network, data.test_images, torch.device("cpu"))
    figures = {"temperature": temperature} | evaluation(
        test_logits, test_logits / temperature, data.test_labels
    )
    contents: dict[str, bytes] = {}
    if plan.publish or plan.also:
        metadata = {"recipe": recipe.name, "seed": str(seed)}
        contents["fp32"] = export_quietly(classifier, metadata)
        prove(contents["fp32"], classifier, data.test_images, data.test_labels)
        if plan.also:
            contents |= _smaller(contents["fp32"], classifier, metadata, recipe, data, plan)
            figures["precisions"] = _measure(contents, data, plan)
    folder.write_json("evaluation.json", figures)
    write_report(folder, folder.read_config(), classifier.network, data, figures)
    say(
        f"Test accuracy {figures['accuracy']:.2%} ± {figures['accuracy_standard_error']:.2%}, "
        f"loss {figures['loss']:.4f}, calibration error {figures['calibration_error']:.2%} "
        f"(temperature {temperature:.3f})."
    )
    say(f"Look at it: {folder.path / 'report.html'}")
    if not plan.publish:
        say(f"Not published; do so with: mnist-train --from-checkpoint {folder.checkpoint}")
        return
    card = _card(classifier, recipe, seed, data) | {"evaluation": _brief(figures)}
    _publish_all(contents, card, figures, plan)


def _calibrated(trained: Trained, recipe: Recipe, data: DataSet) -> Classifier:
    classifier = Classifier(trained.network.cpu().eval())
    held_out = split(data, recipe)
    labels = held_out.validation_labels
    if len(labels):
        logits = logits_of(classifier.network, held_out.validation_images, torch.device("cpu"))
        classifier.temperature = fit_temperature(logits, labels)
    return classifier


def _smaller(
    fp32: bytes,
    classifier: Classifier,
    metadata: dict[str, str],
    recipe: Recipe,
    data: DataSet,
    plan: ReleasePlan,
) -> dict[str, bytes]:
    from training.publish.precision import to_fp16, to_int8  # the quantiser takes a second

    made: dict[str, bytes] = {}
    if "fp16" in plan.also:
        made["fp16"] = to_fp16(classifier, metadata)
    if "int8" in plan.also:
        made["int8"] = to_int8(fp32, metadata, split(data, recipe).images)
    return made


def _measure(contents: dict[str, bytes], data: DataSet, plan: ReleasePlan) -> dict[str, Any]:
    """Measure each file, and say of each whether it is to be published."""
    from training.publish.precision import loses_too_much, measure

    found = {precision: measure(content, data) for precision, content in contents.items()}
    for precision, each in found.items():
        refused = loses_too_much(each, found["fp32"]) and not plan.force
        each["published"] = "refused" if refused else "yes" if plan.publish else "no"
        times = ", ".join(f"{took:.0f} µs for {n}" for n, took in each["microseconds"].items())
        say(f"{precision}: accuracy {each['accuracy']:.2%}, {each['bytes']:,} bytes, {times}.")
    return found


def _publish_all(
    contents: dict[str, bytes], card: dict[str, Any], figures: dict[str, Any], plan: ReleasePlan
) -> None:
    measured = figures.get("precisions", {"fp32": figures | {"published": "yes"}})
    refused = [name for name, each in measured.items() if each["published"] == "refused"]
    for precision, content in contents.items():
        if precision in refused:
            continue
        name = plan.name if precision == "fp32" else f"{plan.name}-{precision}"
        own = {
            "model": name,
            "precision": precision,
            "accuracy": measured[precision]["accuracy"],
            "loss": measured[precision]["loss"],
        }
        published = publish(plan.models, name, content, card | own)
        say(f"Published {published / MODEL_FILE}.")
    say(f"Serve it with: mnist-serve --models {plan.models}")
    if refused:
        raise ExportError(
            f"Not published for losing more than 0.1 % accuracy: {', '.join(refused)}; see the "
            "report. Publish it all the same with --force."
        )


def _card(classifier: Classifier, recipe: Recipe, seed: int, data: DataSet) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": recipes.to_json(recipe),
        "seed": seed,
        "data": {"files": data.sha256},
        "parameters": count_parameters(classifier.network),
        "temperature": classifier.temperature,
        "labels": data.labels,
        "git_revision": git_revision(),
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "versions": versions(),
    }


def _brief(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _brief(value) if isinstance(value, dict) else value
        for key, value in figures.items()
        if key not in _FOR_REPORTS
    }


def versions() -> dict[str, str]:
    """Return the versions that decide what comes out."""
    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def git_revision() -> str | None:
    """Return the revision of the source tree this runs from, None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
