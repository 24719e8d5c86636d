"""Smaller exports of a classifier: fp16, and int8 calibrated on training images.

Each is a separate model with the inputs and outputs of the fp32 one. The softmax and the decisions
are always computed in fp32. Accuracy and speed are measured on the exported file itself, and a file
that loses too much accuracy is not published.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from training.data.dataset import DataSet
from training.evaluation.metrics import PrecisionMetrics, calibration_error, loss_and_accuracy
from training.evaluation.onnx_model import OnnxModel
from training.models import Classifier
from training.publish.export import export_quietly, finish

HIGHEST_LOSS = 0.001  # of accuracy, as a share of all images
_CALIBRATION_IMAGES, _CALIBRATION_BATCH = 1000, 100
_QUANTISED = ["Conv", "Gemm", "MatMul"]


def measure(content: bytes, data: DataSet) -> PrecisionMetrics:
    """Measure an exported file on the test images."""
    model = OnnxModel(content, "an export")
    logits, calibrated = model.outputs(data.test_images)
    probabilities = torch.softmax(calibrated.double(), 1)
    return PrecisionMetrics(
        accuracy=loss_and_accuracy(logits, data.test_labels)[1],
        loss=loss_and_accuracy(calibrated, data.test_labels)[0],
        calibration_error=calibration_error(probabilities, data.test_labels),
        bytes=len(content),
        microseconds=model.microseconds(data.test_images),
    )


def loses_too_much(accuracy: float, reference: float) -> bool:
    """Whether an accuracy is lower than the reference by more than is allowed."""
    return reference - accuracy > HIGHEST_LOSS + 1e-9


def to_fp16(classifier: Classifier, metadata: Mapping[str, str]) -> bytes:
    """Export with 16-bit weights and activations."""
    return export_quietly(classifier, {**metadata, "precision": "fp16"}, torch.float16)


def to_int8(content: bytes, metadata: Mapping[str, str], images: Tensor) -> bytes:
    """Quantise an fp32 export to 8 bits, with a scale for each channel of weights.

    The ranges of activations are taken from evenly spaced training images, uint8 [N,28,28].
    """
    chosen = images[:: max(1, len(images) // _CALIBRATION_IMAGES)][:_CALIBRATION_IMAGES]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser advises a step that our export includes
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
                # 7-bit weights: CPUs without VNNI add pairs of products in 16 bits, which overflow
                # with 8-bit weights. Measured on such a CPU with `fast`, on held-out images:
                # 99.54 % instead of 99.30 %.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(target)
    finally:
        root.setLevel(level)
    return finish(model, {**metadata, "precision": "int8"})


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Yields the calibration images in batches."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(images.split(_CALIBRATION_BATCH))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch.numpy()}
