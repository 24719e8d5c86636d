"""Answers under load are those of ONNX Runtime on each request alone, for any graph."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.core.batching import Batcher, BatchLimits
from service.core.datatypes import BF16, Array
from service.core.tensors import TensorSpec
from service.runtime.ort_values import run_ort_values
from service.runtime.row_wise import agree, random_rows
from service.runtime.session import Session, SessionOptions, load
from tests.e2e.onnx_models import publish
from tests.service.runtime.random_graphs import MIXING, RANDOM, Graph, random_model

GRAPHS = 25  # per seed
SEEDS = range(6)
# Small, so that many requests of few rows are joined, and longer ones split.
LIMITS = BatchLimits(max_batch_size=16, max_queue=1 << 20)
KINDS = ("unit", "small", "scales", "extreme", "alike")


def served_answers(session: Session, requests: list[Array]) -> list[Array]:
    """What the server answers to these requests if they arrive at the same time."""

    async def main(executor: ThreadPoolExecutor) -> list[Array]:
        batcher = Batcher(session, LIMITS.within(session.batching), executor)
        rows = [len(x) if session.has_rows else 1 for x in requests]
        futures = [batcher.submit([x], n) for x, n in zip(requests, rows, strict=True)]
        return [outputs[0] for outputs in await asyncio.gather(*futures)]

    with ThreadPoolExecutor(1) as executor:
        return asyncio.run(main(executor))


def alone(path: Path, spec: TensorSpec, requests: list[Array]) -> list[Array]:
    """What ONNX Runtime gives for each of the requests."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if spec.datatype == BF16:
        run = partial(run_ort_values, session, {spec.name: spec}, None)
        return [run({spec.name: x}, None)[0] for x in requests]
    return [session.run(None, {spec.name: x})[0] for x in requests]


def check(path: Path, requests: list[Array]) -> Session:
    """Serve the requests from a model file, compare the answers, and return the session."""
    session = load(path, SessionOptions("cpu", max_rows=16))
    (spec,), (output,) = session.inputs, session.outputs
    expected = alone(path, spec, requests)
    for x, answer, right in zip(requests, served_answers(session, requests), expected, strict=True):
        assert answer.shape == right.shape
        assert agree(output.datatype, answer, right), (session.batching, len(x), answer, right)
    return session


def requests_for(rng: np.random.Generator, graph: Graph) -> list[Array]:
    spec = TensorSpec("x", graph.datatype, (-1, *graph.inner))
    sizes = [*rng.integers(1, 6, size=12).tolist(), 17, 40, 70]
    kinds = rng.choice(KINDS, len(sizes)).tolist()
    return [random_rows(rng, spec, n, kind) for n, kind in zip(sizes, kinds, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_row_wise_graphs_are_answered_right_and_most_of_them_batched(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng([seed, 0])
    batched = 0
    for number in range(GRAPHS):
        path = tmp_path / str(number) / "model.onnx"
        path.parent.mkdir()
        graph = random_model(rng, None, path)
        batched += check(path, requests_for(rng, graph)).batchable
    assert batched >= 0.8 * GRAPHS


@pytest.mark.parametrize("seed", SEEDS)
def test_graphs_that_mix_rows_are_answered_right_and_never_batched(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng([seed, 1])
    for number in range(GRAPHS):
        path = tmp_path / str(number) / "model.onnx"
        path.parent.mkdir()
        graph = random_model(rng, MIXING, path)
        session = check(path, requests_for(rng, graph))
        assert not session.batchable, graph.steps


def test_random_graphs_are_never_batched(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(GRAPHS):
        path = tmp_path / str(number) / "model.onnx"
        path.parent.mkdir()
        graph = random_model(rng, RANDOM, path)
        session = load(path, SessionOptions("cpu", max_rows=16))
        assert not session.batchable, graph.steps
        requests = requests_for(rng, graph)
        for x, answer in zip(requests, served_answers(session, requests), strict=True):
            assert len(answer) == len(x)


def test_a_mean_over_the_batch_is_that_of_one_request(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "centred",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "centred" / "1" / "model.onnx"
    rng = np.random.default_rng(0)
    check(path, [rng.normal(50, 30, 200).astype(np.float32)])
    sizes = rng.integers(1, 100, size=800)
    session = check(path, [rng.normal(n, 30, n).astype(np.float32) for n in sizes])
    assert "ReduceMean" in session.batching.reason


def test_a_softmax_over_a_sequence_is_that_of_one_request(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "sequence",
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [("x", TensorProto.FLOAT, ["seq", "batch", 8])],
        [("y", TensorProto.FLOAT, ["seq", "batch", 8])],
    )
    path = tmp_path / "sequence" / "1" / "model.onnx"
    rng = np.random.default_rng(0)
    shapes = [(int(n), 2, 8) for n in [*rng.integers(1, 20, size=480), 65, 200]]
    session = check(path, [rng.normal(size=shape).astype(np.float32) for shape in shapes])
    assert "Softmax" in session.batching.reason
