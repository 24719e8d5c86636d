"""A small ONNX model that the project did not train, published for tests that need no process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.core.batching import Batcher, BatchLimits
from service.repository.models import Repository
from service.runtime.session import SessionOptions
from tests.service.composition import Operations, operations_of

WEIGHTS = np.random.default_rng(0).normal(0, 1, (784, 10)).astype(np.float32)


def publish_linear(
    root: Path, datatype: int = TensorProto.FLOAT, card: Any = None, version: int = 1
) -> Path:
    """Publish `linear`, a classifier without softmax, and return the path of its model.onnx.

    It maps `x` [batch,784] to `scores` [batch,10]. With a `datatype` other than FLOAT, `scores` is
    `x` itself. `card` is the text of model.json, or a value to encode as JSON.
    """
    multiplies = datatype == TensorProto.FLOAT
    node = helper.make_node("MatMul", ["x", "w"], ["scores"])
    if not multiplies:
        node = helper.make_node("Identity", ["x"], ["scores"])
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", datatype, ["batch", 784])],
        [helper.make_tensor_value_info("scores", datatype, ["batch", None])],
        [numpy_helper.from_array(WEIGHTS, "w")] if multiplies else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = root / "linear" / str(version)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    if card is not None:
        (folder / "model.json").write_text(card if isinstance(card, str) else json.dumps(card))
    return folder / "model.onnx"


class CallersOf(Batcher):
    """A batcher that remembers whose requests it was given."""

    callers: ClassVar[list[str]] = []

    def submit(
        self,
        inputs: Any,
        rows: int,
        deadline: float | None = None,
        caller: str = "",
        *others: Any,
        **named: Any,
    ) -> Any:
        self.callers.append(caller)
        return super().submit(inputs, rows, deadline, caller, *others, **named)


def run_with_operations(
    root: Path,
    scenario: Callable[[Operations], Awaitable[None]],
    batcher: type[Batcher] = Batcher,
) -> None:
    """Load what `root` holds and run `scenario` with operations whose default model is `linear`."""

    async def main(executor: ThreadPoolExecutor) -> None:
        def batcher_for(name: str, version: str, session: Any) -> Batcher:
            return batcher(session, BatchLimits(), executor)

        repository = Repository(
            root, SessionOptions("cpu"), make_batcher=batcher_for, executor=executor
        )
        await repository.refresh()
        await scenario(operations_of(repository, "linear"))

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(main(executor))
