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
        ([InputTensor("x", "FP32", [1, 784], bytes(3136))] * 2, [], "twice"),
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
