"""Any ONNX file as a classifier: its outputs for images, and its speed.

Models of mnist-train take uint8 pixels [N,28,28] and give `logits` and `probabilities`. Others may
take 784 floats per image, to which pixels are scaled to 0..1 as in the service, and may give only
one of the two outputs.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor

from training.errors import DataError, UsageError

CARD_FILE = "model.json"
_CHUNK = 1000
_TINY = 1e-45  # the smallest float32, in place of a probability that was rounded to zero
_TIMED_SECONDS, _FEWEST_RUNS = 0.3, 30


class Outputs(NamedTuple):
    """The logits [N,classes] of the network, and the logits that give its probabilities."""

    logits: Tensor
    calibrated: Tensor


class OnnxModel:
    """One session on the CPU with one thread, as in a worker of the service."""

    def __init__(self, content: bytes, name: str, kinds: dict[str, str] | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise DataError(f"{name} cannot be loaded by ONNX Runtime: {error}") from error
        self._name = name
        self._kinds = kinds or {}
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UsageError(f"{name} has {len(inputs)} inputs; an image classifier has one.")
        self._input = inputs[0]

    def outputs(self, images: Tensor) -> Outputs:
        """Classify uint8 images [N,28,28]. Raises UsageError if the model cannot."""
        chunks: dict[str, list[npt.NDArray[np.float32]]] = {}
        names = [output.name for output in self._session.get_outputs()]
        size = self._fixed_size() or _CHUNK
        for start in range(0, len(images), size):
            chunk = images[torch.arange(start, start + size).clamp(max=len(images) - 1)]
            for name, values in zip(names, self._run(chunk), strict=True):
                chunks.setdefault(name, []).append(values)
        outputs = {
            name: torch.from_numpy(np.concatenate(parts))[: len(images)].float()
            for name, parts in chunks.items()
            if parts[0].ndim == 2 and parts[0].dtype.kind == "f"
        }
        return self._interpret(outputs)

    def microseconds(self, images: Tensor) -> dict[str, float]:
        """Return the median time of a run for 1 and 64 images, or for the model's fixed number."""
        size = self._fixed_size()
        return {
            str(count): self._median(images[torch.arange(count) % len(images)])
            for count in ((size,) if size else (1, 64))
        }

    def _median(self, images: Tensor) -> float:
        prepared = {self._input.name: self._prepare(images)}
        times: list[float] = []
        end = time.perf_counter() + _TIMED_SECONDS
        while len(times) < _FEWEST_RUNS or time.perf_counter() < end:
            started = time.perf_counter()
            self._session.run(None, prepared)
            times.append(time.perf_counter() - started)
        return statistics.median(times[len(times) // 10 :]) * 1e6

    def _fixed_size(self) -> int:
        """Return the fixed number of images per run, 0 if it is not fixed."""
        first = self._input.shape[0] if self._input.shape else None
        return first if isinstance(first, int) and first > 0 else 0

    def _run(self, images: Tensor) -> list[npt.NDArray[np.float32]]:
        try:
            run: list[npt.NDArray[np.float32]] = self._session.run(
                None, {self._input.name: self._prepare(images)}
            )
        except Exception as error:
            raise UsageError(f"{self._name} cannot be run on images of 28 x 28: {error}") from error
        return run

    def _prepare(self, images: Tensor) -> npt.NDArray[Any]:
        shape = self._input.shape[1:]
        if not all(isinstance(side, int) for side in shape) or math.prod(shape) != 784:
            raise UsageError(
                f"{self._name} takes {self._input.shape}; 784 values per image are needed."
            )
        pixels = images.numpy().reshape(-1, *shape)
        if self._input.type == "tensor(uint8)":
            return pixels
        if self._input.type == "tensor(float)":
            scaled: npt.NDArray[Any] = pixels.astype(np.float32) / np.float32(255)
            return scaled
        raise UsageError(
            f"{self._name} takes {self._input.type}; only uint8 and float are supported."
        )

    def _interpret(self, outputs: dict[str, Tensor]) -> Outputs:
        kinds = {self._kinds.get(name, name): values for name, values in outputs.items()}
        logits, probabilities = kinds.get("logits"), kinds.get("probabilities")
        if logits is None and probabilities is None:
            if len(outputs) != 1:
                raise UsageError(
                    f"{self._name} has the outputs {', '.join(outputs)}; add output_kinds to its "
                    f"{CARD_FILE} to say which of them are logits or probabilities."
                )
            (only,) = outputs.values()
            if _are_distributions(only):
                probabilities = only
            else:
                logits = only
        if probabilities is None:
            assert logits is not None
            return Outputs(logits, logits)
        calibrated = probabilities.double().clamp(min=_TINY).log()
        return Outputs(calibrated if logits is None else logits, calibrated)


def load_onnx(path: Path) -> tuple[OnnxModel, dict[str, Any]]:
    """Load a model file and the card beside it, which may be missing. Raises DataError."""
    try:
        content = path.read_bytes()
        card_path = path.parent / CARD_FILE
        card = json.loads(card_path.read_bytes()) if card_path.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} or the card beside it cannot be read: {error}.") from error
    return OnnxModel(content, str(path), card.get("output_kinds")), card


def _are_distributions(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all())
