"""A trained classifier as an ONNX file, and the proof that the file computes the same outputs.

The graph takes uint8 pixels and gives logits and probabilities. Normalisation, temperature and
softmax are inside it, so clients need no preprocessing code.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from training.errors import ExportError
from training.evaluation.metrics import loss_and_accuracy
from training.models import Classifier, fold_batch_norm

# Older runtimes load no newer versions: ONNX Runtime 1.20 reads up to IR 10. torch's exporter is
# written for opset 18, so nothing is converted.
OPSET = 18
IR_VERSION = 10
_PROBABILITY_TOLERANCE = 1e-5


def export(classifier: Classifier, metadata: Mapping[str, str]) -> bytes:
    """Return the classifier as one ONNX file; the same classifier gives the same bytes.

    Input `image` uint8 [batch,28,28]; outputs `logits`, `probabilities` float32 [batch,classes].
    Raises ExportError if the graph is not as specified.
    """
    folded = Classifier(fold_batch_norm(classifier.network.cpu()), classifier.temperature).eval()
    return export_module(folded, metadata)


def export_module(module: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Export a module with the inputs and outputs of `Classifier`, as `export` does."""
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),  # a batch of 0 or 1 would become a constant
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits", "probabilities"],
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's messages; its errors are exceptions."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def export_quietly(classifier: Classifier, metadata: Mapping[str, str]) -> bytes:
    """Call `export` without the exporter's messages."""
    with quiet():
        return export(classifier, metadata)


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

    Raises ExportError unless every argmax agrees and every probability is within 1e-5.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": images.numpy()})
    with torch.inference_mode():
        expected_logits, expected = (part.numpy() for part in classifier.eval()(images))
    difference = float(np.abs(probabilities - expected).max())
    if difference > _PROBABILITY_TOLERANCE:
        raise ExportError(f"The graph's probabilities differ from PyTorch's by {difference:.1e}.")
    if (wrong := int((logits.argmax(1) != expected_logits.argmax(1)).sum())) > 0:
        raise ExportError(f"The graph predicts another class than PyTorch for {wrong} images.")
    for count in (1, 2, 7, 64):
        batch = images[torch.arange(count) % len(images)].numpy()
        shapes = [output.shape for output in session.run(None, {"image": batch})]
        if shapes != [(count, expected.shape[1])] * 2:
            raise ExportError(f"The graph gives shapes {shapes} for {count} images.")
    return loss_and_accuracy(torch.from_numpy(logits), labels)[1]
