"""Small classifiers of pictures and of numbers, published with their cards."""

from __future__ import annotations

import json
from pathlib import Path

from onnx import TensorProto, helper

from tests.e2e.onnx_models import publish

COLOURS = ("red", "green", "blue")


def publish_colours(repository: Path, **card: object) -> None:
    """`colours`: FP32 [N,3,4,4] `x` to `y`, twice the mean of each channel as logits."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Add", ["means", "means"], ["y"]),
    ]
    _publish(repository, "colours", nodes, [("x", ["n", 3, 4, 4])], ["n", 3, 1, 1], card)


def publish_lengths(repository: Path, **card: object) -> None:
    """`lengths`: FP32 [N,1] `a` and `b` side by side as the logits `y` of two classes."""
    nodes = [helper.make_node("Concat", ["a", "b"], ["y"], axis=1)]
    _publish(repository, "lengths", nodes, [("a", ["n", 1]), ("b", ["n", 1])], ["n", 2], card)


def publish_mixing(repository: Path, **card: object) -> None:
    """`mixing`: FP32 [N,2] `x` without its mean over the rows, as logits `y`. Not row-wise."""
    nodes = [
        helper.make_node("Constant", [], ["0"], value_ints=[0]),
        helper.make_node("ReduceMean", ["x", "0"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    _publish(repository, "mixing", nodes, [("x", ["n", 2])], ["n", 2], card)


def _publish(
    repository: Path,
    name: str,
    nodes: list[object],
    inputs: list[tuple[str, list[str | int]]],
    output: list[str | int],
    card: dict[str, object],
) -> None:
    publish(
        repository,
        name,
        nodes,
        [(each, TensorProto.FLOAT, shape) for each, shape in inputs],
        [("y", TensorProto.FLOAT, output)],
    )
    (repository / name / "1" / "model.json").write_text(json.dumps(card))
