from __future__ import annotations

from pathlib import Path

import pytest

from service.core.errors import InvalidArgument
from service.core.request import InferRequest, InputTensor, RequestedOutput
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], [], r"missing required input\(s\) \['x'\]"),
        ([InputTensor("y", "FP32", [1, 784], bytes(3136))], [], "'y'"),
        ([InputTensor("x", "FP32", [1, 784], bytes(3136))] * 2, [], "input 'x' already exists"),
        ([InputTensor("x", "FP32", [1, 784], bytes(3136))], [RequestedOutput("z")], "'z'"),
    ],
)
def test_wrong_tensor_is_rejected_by_name(
    tmp_path: Path, inputs: list[InputTensor], outputs: list[RequestedOutput], message: str
) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match=message):
            await operations.inference.infer(InferRequest("linear", "", inputs, outputs))

    run_with_operations(tmp_path, scenario)


def test_without_the_default_model_all_models_asked_for_decide_on_readiness(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish_linear(models)
    (models / "linear").rename(models / "other")
    broken = models / "broken" / "1"

    async def scenario(operations: Operations) -> None:
        inference = operations.inference
        assert inference.default_model == "linear"
        assert inference.readiness().ready
        broken.mkdir(parents=True)
        (broken / "model.onnx").write_bytes(b"no model")
        await inference.repository.refresh()
        assert inference.readiness()[:2] == (False, "Model 'broken' is not loaded.")
        await inference.repository.follow({"broken", "other"}, {})
        assert inference.readiness().ready  # nothing else was asked for
        await inference.repository.follow({"broken"}, {"other": 1})
        assert inference.readiness().ready

    run_with_operations(models, scenario)


def test_a_broken_model_beside_the_default_model_leaves_the_server_ready(tmp_path: Path) -> None:
    publish_linear(tmp_path)
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")

    async def scenario(operations: Operations) -> None:
        assert operations.inference.readiness().ready
        assert operations.inference.readiness().failures.keys() == {"broken/1"}

    run_with_operations(tmp_path, scenario)


def test_an_empty_repository_waits_for_the_default_model(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        assert operations.inference.readiness().reason == "Model 'linear' is not loaded."

    run_with_operations(tmp_path, scenario)
