"""Models that we did not train: what runs, what is refused and how it is said."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.core.batching import Batcher, BatchLimits
from service.core.errors import InvalidArgument, ModelLoadError, ModelNotFound, ProviderUnavailable
from service.core.request import InferRequest, InputTensor, RequestedOutput
from service.operations.digits import predictions
from service.operations.inference import Operations
from service.repository.models import Repository
from service.runtime.packages import conflicting_packages
from service.runtime.session import CPU, SessionOptions, load
from tests.service.composition import operations_of

WEIGHTS = np.random.default_rng(0).normal(0, 1, (784, 10)).astype(np.float32)


def publish(root: Path, kind: int = TensorProto.FLOAT, card: Any = None, version: int = 1) -> Path:
    """A linear classifier without softmax: [batch,784] of `kind` to `scores` [batch,10]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"])]
    if kind != TensorProto.FLOAT:
        nodes = [
            helper.make_node("Identity", ["x"], ["scores"]),
        ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, ["batch", 784])],
        [helper.make_tensor_value_info("scores", kind, ["batch", None])],
        [numpy_helper.from_array(WEIGHTS, "w")] if kind == TensorProto.FLOAT else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = root / "linear" / str(version)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    if card is not None:
        (folder / "model.json").write_text(card if isinstance(card, str) else json.dumps(card))
    return folder / "model.onnx"


async def operations_on(root: Path, executor: ThreadPoolExecutor, keep: int = 1) -> Operations:
    def make_batcher(name: str, version: str, session: Any) -> Batcher:
        return Batcher(session, BatchLimits(), executor)

    options = SessionOptions(provider="cpu")
    repository = Repository(root, options, make_batcher, executor, keep)
    await repository.refresh()
    return operations_of(repository, "linear")


def run(root: Path, scenario: Any) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(await operations_on(root, executor))

    asyncio.run(main())


PIXELS = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)


def test_logits_of_a_foreign_model_become_probabilities(tmp_path: Path) -> None:
    publish(tmp_path, card={"output_kinds": {"scores": "logits"}})

    async def scenario(operations: Operations) -> None:
        found = await operations.classify(PIXELS)
        logits = (PIXELS.reshape(3, 784) / np.float32(255)) @ WEIGHTS
        expected = np.exp(logits - logits.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        assert np.abs(found.probabilities - expected).max() < 1e-5
        for prediction, row in zip(predictions(found), expected, strict=True):
            assert prediction.digit == row.argmax()
            assert 0 <= prediction.entropy_bits <= np.log2(10)

    run(tmp_path, scenario)


def test_a_model_of_unknown_output_is_not_guessed_at(tmp_path: Path) -> None:
    publish(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="output_kinds"):
            await operations.classify(PIXELS)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        ([], [], "'x' is missing"),
        ([InputTensor("y", "FP32", [1, 784], bytes(3136))], [], "'y'"),
        ([InputTensor("x", "FP32", [1, 784], bytes(3136))] * 2, [], "twice"),
        ([InputTensor("x", "FP32", [1, 784], bytes(3136))], [RequestedOutput("z")], "'z'"),
    ],
)
def test_infer_names_the_tensor_that_is_wrong(
    tmp_path: Path, inputs: list[InputTensor], outputs: list[RequestedOutput], named: str
) -> None:
    publish(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match=named):
            await operations.infer(InferRequest("linear", "", inputs, outputs))

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ({"sha256": "0"}, "SHA-256"),
        ({"sha256": 1}, "string"),
        ({"output_kinds": {"scores": "guess"}}, "output_kinds"),
    ],
)
def test_a_wrong_card_keeps_its_version_out(tmp_path: Path, card: Any, reason: str) -> None:
    publish(tmp_path, card=card)

    async def scenario(operations: Operations) -> None:
        assert reason in operations.repository.failures["linear/1"]
        assert not operations.readiness().ready
        with pytest.raises(ModelNotFound, match="linear"):
            operations.repository.get("linear")

    run(tmp_path, scenario)


def test_a_repository_that_vanishes_keeps_what_is_loaded(tmp_path: Path) -> None:
    publish(tmp_path / "models")

    async def scenario(operations: Operations) -> None:
        (tmp_path / "models").rename(tmp_path / "gone")
        await operations.repository.refresh()
        assert operations.readiness().ready
        assert str(tmp_path / "models") in operations.readiness().failures
        (tmp_path / "gone").rename(tmp_path / "models")
        (tmp_path / "models" / "linear").rename(tmp_path / "linear")
        await operations.repository.refresh()
        assert not operations.readiness().ready
        assert operations.readiness().failures == {}

    run(tmp_path / "models", scenario)


def test_what_cannot_be_served_is_refused_at_loading(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="float8"):
        load(publish(tmp_path, TensorProto.FLOAT8E4M3FN), SessionOptions("cpu"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelLoadError):
        load(broken, SessionOptions("cpu"))


def test_cuda_on_a_cpu_build_is_an_error_and_auto_says_why(tmp_path: Path) -> None:
    model = publish(tmp_path)
    with pytest.raises(ProviderUnavailable, match="without CUDA"):
        load(model, SessionOptions("cuda"))
    session = load(model, SessionOptions("auto"))
    assert session.provider == CPU
    assert "without CUDA" in session.fallback
    assert load(model, SessionOptions("cpu")).fallback == ""


def test_both_onnxruntime_packages_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conflicting_packages() == ""
    folder = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "onnxruntime-gpu 1.31.1" in conflicting_packages()
    assert "uninstall both" in conflicting_packages()
