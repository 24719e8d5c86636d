"""Smaller exports of a classifier: fp16, and int8 calibrated on training images.

Each is a model of its own beside the fp32 one, with the same inputs and outputs; logits are turned
into probabilities in fp32 whatever the network computes in. How accurate and how fast each is, is
measured on its own file, and what loses too much accuracy is not published.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from training.data.dataset import DataSet
from training.evaluation.metrics import calibration_error, loss_and_accuracy
from training.evaluation.onnx_model import OnnxModel
from training.models import Classifier, fold_batch_norm, scale
from training.publish.export import export_module, finish, quiet

MOST_LOST = 0.001  # of accuracy, as a share of all images
_CALIBRATION_IMAGES, _CALIBRATION_BATCH = 1000, 100
_QUANTISED = ["Conv", "Gemm", "MatMul"]


def measure(content: bytes, data: DataSet) -> dict[str, Any]:
    """Return a file's accuracy, loss and calibration error on the test images, size and times."""
    model = OnnxModel(content, "an export")
    logits, calibrated = model.outputs(data.test_images)
    probabilities = torch.softmax(calibrated.double(), 1)
    return {
        "accuracy": loss_and_accuracy(logits, data.test_labels)[1],
        "loss": loss_and_accuracy(calibrated, data.test_labels)[0],
        "calibration_error": calibration_error(probabilities, data.test_labels),
        "bytes": len(content),
        "microseconds": model.microseconds(data.test_images),
    }


def loses_too_much(figures: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether a file is less accurate than the reference by more than is allowed."""
    lost: float = reference["accuracy"] - figures["accuracy"]
    return lost > MOST_LOST + 1e-9


def to_fp16(classifier: Classifier, metadata: Mapping[str, str]) -> bytes:
    """Export with weights and activations of 16 bits."""
    network = fold_batch_norm(copy.deepcopy(classifier.network).cpu()).half()
    half = _HalfClassifier(network, classifier.temperature).eval()
    with quiet():
        return export_module(half, {**metadata, "precision": "fp16"})


def to_int8(content: bytes, metadata: Mapping[str, str], images: Tensor) -> bytes:
    """Quantise an fp32 export to 8 bits, each channel of weights by itself.

    Ranges of activations are those on evenly chosen training images, uint8 [N,28,28].
    """
    chosen = images[:: max(1, len(images) // _CALIBRATION_IMAGES)][:_CALIBRATION_IMAGES]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step that our export has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            quantize_static(
                onnx.load_from_string(content),
                target,
                _Images(chosen),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                # Weights of 7 bits: CPUs without VNNI add pairs of products in 16 bits, which
                # overflow with 8. Measured there on `fast`, held-out images: 99.54 %, not 99.30 %.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(target)
    finally:
        root.setLevel(level)
    return finish(model, {**metadata, "precision": "int8"})


class _HalfClassifier(nn.Module):
    """`Classifier` whose network computes in 16 bits."""

    def __init__(self, network: nn.Sequential, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = cast(Tensor, self.network(scale(image).half())).float()
        return logits, torch.softmax(logits / self.temperature, dim=-1)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands calibration images over, a batch at a time."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(images.split(_CALIBRATION_BATCH))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch.numpy()}
