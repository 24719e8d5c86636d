"""A model as a classifier of anything: which tensors to use, rows in, labels and probabilities out.

Arithmetic only: it knows tensors and arrays, no repository and no session. Digits have their own
(`core.digits`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from service.core.classification.fields import row_shape
from service.core.classification.pictures import PictureInput, PictureRule, picture_input
from service.core.datatypes import BF16, BYTES, Array, from_bfloat16
from service.core.digits import LOGITS, PROBABILITIES
from service.core.errors import InvalidArgument, ModelFault
from service.core.tensors import TensorSpec

# Logits beyond these stand for infinite ones; their differences are still finite.
_LARGEST_LOGIT = float(np.finfo(np.float64).max) / 4
_LARGEST_PROBABILITY = float(np.finfo(np.float32).max)


class Classification(NamedTuple):
    """The most probable class: its label, its index, and the entropy of the distribution in bits.

    `probabilities` has the most probable classes by label, most probable first.
    """

    label: str
    class_index: int
    probabilities: dict[str, Any]
    entropy_bits: float


class NotAClassifier(Exception):
    """The model's card does not say how it classifies; the message says what is missing in it."""


class Classifier(NamedTuple):
    """How a model classifies: index, name and shape of a row of the output, and what it holds.

    `picture` is how its only input takes pictures; None if it takes numbers or strings. `labels`
    are distinct, and empty for a model without names of its classes. A class without one is called
    by its index after `unnamed`, which makes that none of the labels.
    """

    inputs: tuple[TensorSpec, ...]
    picture: PictureInput | None
    output: int
    output_name: str
    output_row: tuple[int, ...]
    is_logits: bool
    is_bfloat16: bool
    labels: tuple[str, ...]
    unnamed: str

    def without_count(self, arrays: Sequence[Array]) -> list[Array]:
        """The model's inputs for arrays [N, ...]; an input for a single row alone loses the N."""
        return [
            # With the dots a scalar stays an array, which ONNX Runtime needs.
            array if array.ndim == len(spec.shape) else array[0, ...]
            for spec, array in zip(self.inputs, arrays, strict=True)
        ]

    def classifications(
        self, outputs: Sequence[Array], count: int, top: int, model: str
    ) -> list[Classification]:
        """One classification for each of `count` rows, with at most `top` probabilities.

        An infinite logit is the largest number, or the smallest. Raises ModelFault, which names the
        `model`, for NaN and for an infinite probability: its input had neither. Raises
        InvalidArgument for an output of another number of rows.
        """
        values = outputs[self.output]
        classes = prod(values.shape[-len(self.output_row) :]) if self.output_row else 1
        if not values.size == count * classes > 0:
            raise InvalidArgument(
                f"The model's output '{self.output_name}' has shape {list(values.shape)} for "
                f"{count} row{'s' if count > 1 else ''} of input, not one number per class for "
                "each; use the infer endpoint."
            )
        values = from_bfloat16(values) if self.is_bfloat16 else values
        rows = values.reshape(count, -1).astype(np.float64)
        if self.is_logits:
            rows = np.clip(rows, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        limit = _LARGEST_LOGIT if self.is_logits else _LARGEST_PROBABILITY
        if not (np.abs(rows) <= limit).all():  # NaN fails this form of the check as well
            raise ModelFault.not_finite(model, "input", "class")
        if rows.shape[1] == 1:  # the second of two classes
            rows = np.hstack([np.zeros_like(rows) if self.is_logits else 1 - rows, rows])
        if self.is_logits:
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            rows /= rows.sum(axis=1, keepdims=True)
        terms = rows * np.log2(rows, where=rows > 0, out=np.zeros_like(rows))
        order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
        largest = np.take_along_axis(rows, order, axis=1).astype(np.float32)
        return [
            Classification(
                label=self._label(indexes[0]),
                class_index=indexes[0],
                probabilities=dict(zip(map(self._label, indexes), row, strict=True)),
                entropy_bits=entropy,
            )
            for indexes, row, entropy in zip(
                order.tolist(), largest, (0.0 - terms.sum(axis=1)).tolist(), strict=True
            )
        ]

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else f"{self.unnamed}{index}"


def classifier_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    kinds: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    rule: PictureRule | None,
) -> Classifier:
    """How a model with these tensors classifies.

    `kinds` says of each output whether it holds probabilities or logits; empty if that is unknown.
    `labels` are the names of the classes by output. Raises PictureError if `rule` does not fit the
    model, NotAClassifier if a field is missing.
    """
    picture = None
    if rule is not None:
        picture = picture_input(rule, inputs)
    if not inputs:
        raise NotAClassifier("takes no inputs, so it classifies nothing; use the infer endpoint.")
    if PROBABILITIES not in kinds and LOGITS not in kinds:
        raise NotAClassifier(
            "has no output known to be logits or probabilities; its model.json lacks output_kinds, "
            f"which says so of one of: {', '.join(spec.name for spec in outputs)}."
        )
    output = kinds.index(PROBABILITIES if PROBABILITIES in kinds else LOGITS)
    spec = outputs[output]
    for tensor in (*inputs, spec):
        if not tensor.has_rank:
            raise NotAClassifier(
                f"has a tensor of any shape, '{tensor.name}'; use the infer endpoint."
            )
    names = labels.get(spec.name, ())
    row = row_shape(spec)
    if spec.shape == (-1,) and all(row_shape(each) == each.shape for each in inputs):
        row = spec.shape  # nothing counts rows: these are the classes of the only one
    classes = [size for size in row if size != 1] or [2]
    if len(classes) > 1 or spec.datatype in (BYTES, "BOOL"):
        raise NotAClassifier(
            f"is no classifier: its output '{spec.name}' is {spec.datatype} {list(spec.shape)}, "
            "not one number per class."
        )
    if names and classes[0] not in (-1, len(names)):
        raise NotAClassifier(
            f"has {len(names)} labels, but {classes[0]} classes in its output '{spec.name}'."
        )
    unnamed = ""
    while any(re.fullmatch(rf"{unnamed}\d+", name) for name in names):
        unnamed += "class "
    return Classifier(
        inputs=tuple(inputs),
        picture=picture,
        output=output,
        output_name=spec.name,
        output_row=row,
        is_logits=kinds[output] == LOGITS,
        is_bfloat16=spec.datatype == BF16,
        labels=_distinct(names),
        unnamed=unnamed,
    )


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names; equal ones get their index to tell them apart."""
    counts = Counter(names)
    taken = {name for name, count in counts.items() if count == 1}
    labels = []
    for index, name in enumerate(names):
        label = name
        if counts[name] > 1:
            label += f" ({index})"
            while label in taken:
                label += f" ({index})"
            taken.add(label)
        labels.append(label)
    return tuple(labels)
