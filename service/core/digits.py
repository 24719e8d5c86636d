"""A model as a classifier of digits: which tensors to use, pixels in, probabilities out.

Arithmetic only: it knows tensors and arrays, no repository and no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.core.datatypes import Array
from service.core.errors import InvalidArgument
from service.core.tensors import TensorSpec

Pixels = npt.NDArray[np.uint8]

SIDE = 28
# What the values of an output are, in the words of the model card.
PROBABILITIES = "probabilities"
LOGITS = "logits"
# Up to this many rows plain Python is faster than numpy.
_FEW_ROWS = 8


class Prediction(NamedTuple):
    """The most probable digit, the distribution over all ten (float32 [10]) and its entropy."""

    digit: int
    probabilities: npt.NDArray[np.float32]
    entropy_bits: float


class NotDigits(Exception):
    """The model does not classify 28x28 images; the message says why, with no subject."""


class DigitLayout(NamedTuple):
    """How a model classifies digits: the index of the output to read, and what it holds.

    `image_shape` is the shape of one image in an FP32 input, or None for an input of uint8 pixels.
    """

    output: int
    is_logits: bool
    image_shape: tuple[int, ...] | None

    def inputs(self, pixels: Pixels) -> list[Array]:
        """The model's inputs for uint8 [N,28,28]; FP32 inputs get pixels scaled to 0..1."""
        if self.image_shape is None:
            return [pixels]
        # Foreign models: as torchvision's ToTensor scales them.
        images = pixels.reshape((len(pixels), *self.image_shape))
        return [images.astype(np.float32) / np.float32(255)]

    def predictions(self, outputs: Sequence[Array]) -> list[Prediction]:
        """One prediction per row of the model's outputs; distributions sum to 1 within 1e-6."""
        probabilities = outputs[self.output]
        if self.is_logits:
            shifted = np.exp(probabilities - probabilities.max(axis=-1, keepdims=True))
            probabilities = np.asarray(
                shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32
            )
        predictions = []
        if len(probabilities) <= _FEW_ROWS:
            for row, values in zip(probabilities, probabilities.tolist(), strict=True):
                entropy = 0.0
                for p in values:
                    if p > 0.0:
                        entropy -= p * log2(p)
                predictions.append(Prediction(values.index(max(values)), row, entropy))
            return predictions
        exact = probabilities.astype(np.float64)
        terms = exact * np.log2(exact, where=exact > 0.0, out=np.zeros_like(exact))
        return [
            Prediction(*row)
            for row in zip(
                probabilities.argmax(axis=1).tolist(),
                probabilities,
                (0.0 - terms.sum(axis=1)).tolist(),
                strict=True,
            )
        ]


def layout_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], kinds: Sequence[str]
) -> DigitLayout:
    """How a model with these tensors classifies digits.

    `kinds` says of each output whether it holds probabilities or logits; empty if that is unknown.
    Raises NotDigits.
    """
    if PROBABILITIES in kinds:
        output = kinds.index(PROBABILITIES)
    elif LOGITS in kinds:
        output = kinds.index(LOGITS)
    else:
        raise NotDigits(
            "has no output known to be logits or probabilities; its model.json can say so in "
            "output_kinds."
        )
    is_logits = kinds[output] == LOGITS
    if len(inputs) == 1:
        _, datatype, shape = inputs[0]
        if datatype == "UINT8" and shape == (-1, SIDE, SIDE):
            return DigitLayout(output, is_logits, None)
        if datatype == "FP32" and shape[:1] == (-1,) and prod(shape[1:]) == SIDE * SIDE:
            return DigitLayout(output, is_logits, shape[1:])
    raise NotDigits("does not take images of 28x28; use the infer endpoint.")


def pixels_from_values(array: Array) -> Pixels:
    """Arrange uint8 [28,28], [784], [N,28,28] or [N,784] as [N,28,28].

    Raises InvalidArgument for any other shape.
    """
    if array.shape[-2:] == (SIDE, SIDE) and array.ndim in (2, 3):
        return array.reshape(-1, SIDE, SIDE)
    if array.shape[-1:] == (SIDE * SIDE,) and array.ndim in (1, 2):
        return array.reshape(-1, SIDE, SIDE)
    raise InvalidArgument(
        f"image: has shape {list(array.shape)}; send 28x28, Nx28x28 or 784 numbers."
    )


def pixels_from_bytes(raw: bytes) -> Pixels:
    """View raw pixels as uint8 [N,28,28], without a copy.

    Raises InvalidArgument unless there is at least one whole image of 784 bytes.
    """
    if not raw or len(raw) % (SIDE * SIDE):
        raise InvalidArgument(
            f"pixels: {len(raw)} bytes are not a whole number (1 or more) of 28x28 = 784 byte "
            "images."
        )
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE)
