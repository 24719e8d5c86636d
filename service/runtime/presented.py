"""Presents a session's tensors in other shapes than the model's own, and some of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnxruntime as ort

from service.core.datatypes import MISSING, Array
from service.core.tensors import TensorSpec
from service.runtime.session import Run, Session


class Tensor(NamedTuple):
    """An input or output: its position in the model, as requests see it, and its shape there.

    The open sizes (-1) of both shapes are the same, in their order.
    """

    position: int
    spec: TensorSpec
    shape: tuple[int, ...]


def present(session: Session, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Give a session these inputs, all of them in the model's order, and these outputs.

    `inputs` end with the session's `defaults`.
    """
    count, served = len(session.inputs), list(range(len(session.outputs)))
    is_reshaped = any(tensor.shape != tensor.spec.shape for tensor in (*inputs, *outputs))
    session.inputs = tuple(tensor.spec for tensor in inputs[:count])
    session.defaults = tuple(tensor.spec for tensor in inputs[count:])
    session.outputs = tuple(tensor.spec for tensor in outputs)
    if is_reshaped or [tensor.position for tensor in outputs] != served:
        session.run = PresentedRuns(session.run, inputs, outputs).run


class PresentedRuns:
    """Runs on inputs as requests have them, and gives outputs as requests get them."""

    def __init__(self, run: Run, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._run = run
        self._inputs = [tensor for tensor in inputs if tensor.shape != tensor.spec.shape]
        self._outputs = [(tensor.position, tensor.shape, tensor.spec.shape) for tensor in outputs]

    def run(self, arrays: Sequence[Array], options: ort.RunOptions | None = None) -> list[Array]:
        """The outputs for these inputs, both as requests see them."""
        own = list(arrays)
        for position, spec, shape in self._inputs:
            # Those with a default may be missing at the end.
            if position < len(own) and own[position] is not MISSING:
                own[position] = reshaped(own[position], spec.shape, shape)
        results = self._run(own, options)
        return [reshaped(results[i], before, after) for i, before, after in self._outputs]


def reshaped(array: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """The array, of a shape like `before`, in the shape `after` with the same open sizes."""
    if before == after:
        return array
    sizes = (size for size, declared in zip(array.shape, before, strict=True) if declared < 0)
    return array.reshape([next(sizes) if size < 0 else size for size in after])
