"""A model as a classifier of digits: pixels in the form that it takes, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from service.core.datatypes import Array
from service.core.errors import InvalidArgument
from service.core.images import SIDE, Pixels
from service.repository.card import LOGITS, PROBABILITIES
from service.repository.models import ServedModel
from service.runtime.session import Session


class Classification(NamedTuple):
    """Distributions over the digits: float32 [N,10], rows sum to 1 within 1e-6."""

    model: str
    version: str
    probabilities: npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """One row of a classification, with what people want to know of it."""

    digit: int
    probabilities: npt.NDArray[np.float32]
    entropy_bits: float


def predictions(classification: Classification) -> list[Prediction]:
    """The rows of a classification: the most probable digit and the entropy in bits of each."""
    probabilities = classification.probabilities
    if len(probabilities) <= _FEW:
        digits, entropies = [], []
        for values in probabilities.tolist():
            digits.append(values.index(max(values)))
            entropies.append(-sum([p * log2(p) for p in values if p > 0.0]) + 0.0)
    else:
        digits = probabilities.argmax(axis=1).tolist()
        exact = probabilities.astype(np.float64)
        terms = exact * np.log2(exact, where=exact > 0.0, out=np.zeros_like(exact))
        entropies = (0.0 - terms.sum(axis=1)).tolist()
    return [Prediction(*row) for row in zip(digits, probabilities, entropies, strict=True)]


# Rows up to which plain Python is quicker than numpy.
_FEW = 8


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


class Head(NamedTuple):
    """How a model classifies: the output to read, whether it is logits, and the input's shape.

    The shape is that of one image in an FP32 input; None for an input that takes uint8 pixels.
    """

    output: int
    is_logits: bool
    image_shape: tuple[int, ...] | None


# Looked up for every request, found out once for a session.
_heads: WeakKeyDictionary[Session, Head] = WeakKeyDictionary()


def as_classifier(served: ServedModel, pixels: Pixels) -> tuple[list[Array], Head]:
    """Inputs for a model of digits, and how to read its outputs. Raises InvalidArgument."""
    head = _heads.get(served.session)
    if head is None:
        head = _heads[served.session] = _head(served)
    if head.image_shape is None:
        return [pixels], head
    # Foreign models: pixels in 0..1, as torchvision's ToTensor makes them.
    scaled = pixels.reshape((len(pixels), *head.image_shape)).astype(np.float32) / np.float32(255)
    return [scaled], head


def _head(served: ServedModel) -> Head:
    inputs, outputs = served.session.inputs, served.session.outputs
    kinds = [served.card.kind(output.name) for output in outputs]
    if PROBABILITIES in kinds:
        index = kinds.index(PROBABILITIES)
    elif LOGITS in kinds:
        index = kinds.index(LOGITS)
    else:
        raise InvalidArgument(
            f"Model '{served.name}' has no output known to be logits or probabilities; "
            "its model.json can say so in output_kinds."
        )
    is_logits = kinds[index] == LOGITS
    spec = inputs[0]
    if len(inputs) == 1 and spec.datatype == "UINT8" and spec.shape == (-1, SIDE, SIDE):
        return Head(index, is_logits, None)
    size = int(np.prod(spec.shape[1:]))
    if len(inputs) != 1 or spec.datatype != "FP32" or size != SIDE * SIDE or spec.shape[0] != -1:
        raise InvalidArgument(
            f"Model '{served.name}' does not take images of 28x28; use the infer endpoint."
        )
    return Head(index, is_logits, spec.shape[1:])


def distribution(outputs: Sequence[Array], head: Head) -> npt.NDArray[np.float32]:
    """Probabilities [N,10] from the outputs of a model of digits."""
    found = outputs[head.output]
    return _softmax(found) if head.is_logits else found


def _softmax(logits: Array) -> npt.NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
