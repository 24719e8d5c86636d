"""A trained classifier as an ONNX file, and the proof that the file computes the same outputs.

The graph takes uint8 pixels and gives logits, probabilities and whether each picture is accepted as
a digit. Normalisation, temperature, softmax and thresholds are inside it, so clients need no
preprocessing code.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor

from training.errors import ExportError
from training.evaluation.metrics import loss_and_accuracy
from training.models import Classifier, fold_batch_norm

# Older runtimes load no newer versions: ONNX Runtime 1.20 reads up to IR 10. torch's exporter is
# written for opset 18, so nothing is converted.
OPSET = 18
IR_VERSION = 10
_PROBABILITY_TOLERANCE = 1e-5
_MOST_OTHER_DECISIONS = 0.001


def export(
    classifier: Classifier, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> bytes:
    """Return the classifier as one ONNX file; the same classifier gives the same bytes.

    Input `image` uint8 [batch,28,28]; outputs as `Classifier.forward` has them, with [batch] for
    [N]. `dtype` is that of the weights in the file. Raises ExportError if the graph is not as
    specified.
    """
    network = fold_batch_norm(copy.deepcopy(classifier.network).cpu()).to(dtype)
    folded = Classifier(
        network,
        classifier.temperature,
        classes=classifier.classes,
        thresholds=classifier.thresholds,
        dtype=dtype,
    )
    program = torch.onnx.export(
        folded.eval(),
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),  # a batch of 0 or 1 would become a constant
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(classifier.outputs),
        dynamic_shapes={"image": {0: "batch"}},
        verbose=False,
    )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing.")
    graph = ClearMetadataAndDocStringPass()(program.model).model
    return finish(onnx_ir.to_proto(graph), metadata)


def finish(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Make a graph independent of the machine, check it, and return its bytes.

    Raises ExportError.
    """
    _clean(model, metadata)
    _check(model)
    return model.SerializeToString(deterministic=True)


def export_quietly(
    classifier: Classifier, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> bytes:
    """Call `export` without the exporter's messages; its errors are exceptions."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return export(classifier, metadata, dtype)


def _clean(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Remove stack traces and paths, and set the fields that have no fixed default."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "mnist-service", ""
    model.domain, model.doc_string, model.model_version = "", "", 1
    model.graph.name = "mnist"
    graph = model.graph
    values: list[Any] = [
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ]
    for value in values:
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    del model.metadata_props[:]
    domains = {node.domain for node in graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in domains]:
        model.opset_import.remove(opset)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _check(model: onnx.ModelProto) -> None:
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets != {"": OPSET} or model.ir_version != IR_VERSION:
        raise ExportError(f"The graph has opsets {opsets} and IR {model.ir_version}.")
    if any(initializer.data_location for initializer in model.graph.initializer):
        raise ExportError("The graph stores its weights outside of its file.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx.checker rejects the graph: {error}") from error


def prove(model: bytes, classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Compare the file with PyTorch on uint8 images [N,28,28] and return the file's accuracy.

    Raises ExportError unless every argmax agrees, every probability is within 1e-5, and decisions
    differ for at most one image in a thousand, which rounding can move across a threshold.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = list(classifier.outputs)
    logits, probabilities, *decisions = session.run(names, {"image": images.numpy()})
    with torch.inference_mode():
        parts = classifier.eval()(images)
        expected_logits, expected, *expected_decisions = (part.numpy() for part in parts)
    difference = float(np.abs(probabilities - expected).max())
    if difference > _PROBABILITY_TOLERANCE:
        raise ExportError(f"The graph's probabilities differ from PyTorch's by {difference:.1e}.")
    if (wrong := int((logits.argmax(1) != expected_logits.argmax(1)).sum())) > 0:
        raise ExportError(f"The graph predicts another class than PyTorch for {wrong} images.")
    for name, found, right in zip(names[2:], decisions, expected_decisions, strict=True):
        differs = (found != right).reshape(len(images), -1).any(1)
        if (count := int(differs.sum())) > len(images) * _MOST_OTHER_DECISIONS:
            raise ExportError(f"The graph's {name} differs from PyTorch's for {count} images.")
    expected_shapes = [part.shape[1:] for part in parts]
    for count in (1, 2, 7, 64):
        batch = images[torch.arange(count) % len(images)].numpy()
        shapes = [output.shape for output in session.run(None, {"image": batch})]
        if shapes != [(count, *shape) for shape in expected_shapes]:
            raise ExportError(f"The graph gives shapes {shapes} for {count} images.")
    return loss_and_accuracy(torch.from_numpy(logits), labels)[1]
