from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import SERVER_NAME, __version__
from service.core.errors import ModelNotFound
from service.grpc.administration import AdministrationService
from service.grpc.answering import Call, Calls, rpcs
from service.grpc.open_inference import OpenInference
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.stubs.inference import inference_pb2 as pb
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, CallersOf, publish_linear, run_with_operations

INPUT = np.random.default_rng(2).normal(size=(2, 784)).astype(np.float32)
SCORES = INPUT @ WEIGHTS


async def call(operations: Operations, method: str, request: Any) -> Any:
    """The answer of a unary method, called as a transport calls it."""
    return (
        await OpenInference(operations.inference)
        .methods()[method]
        .handler(request, Call(None, "caller"))
    )


def infer_request(model: str = "linear", **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=[2, 784])
    return request


def test_raw_request_has_a_raw_answer(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        request = infer_request(id="7", raw_input_contents=[INPUT.tobytes()])
        answer = await call(operations, "ModelInfer", request)
        assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "7")
        (output,) = answer.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("scores", "FP32", [2, 10])
        scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 10)
        assert np.allclose(scores, SCORES, atol=1e-4)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("typed", [False, True])
def test_typed_request_has_a_raw_answer_unless_the_settings_say_typed(
    tmp_path: Path, typed: bool
) -> None:
    CallersOf.callers.clear()
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        request = infer_request()
        request.inputs[0].contents.fp32_contents.extend(INPUT.ravel().tolist())
        operations.inference.typed_answers = typed
        answer = await call(operations, "ModelInfer", request)
        assert CallersOf.callers == ["caller"]
        contents = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
        if not typed:
            assert not contents.size
            contents = np.frombuffer(answer.raw_output_contents[0], np.float32)
        else:
            assert not answer.raw_output_contents
        assert np.allclose(contents.reshape(2, 10), SCORES, atol=1e-4)

    run_with_operations(tmp_path, scenario, CallersOf)


def test_stream_answers_a_failed_request_with_its_id_and_its_error(tmp_path: Path) -> None:
    CallersOf.callers.clear()
    publish_linear(tmp_path)
    raw = [INPUT.tobytes()]
    requests = [
        infer_request(id="1", raw_input_contents=raw),
        infer_request("none", id="2", raw_input_contents=raw),
    ]

    async def messages() -> AsyncIterator[bytes]:
        for request in requests:
            yield request.SerializeToString()
        yield b"\xff"

    async def scenario(operations: Operations) -> None:
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        methods = OpenInference(operations.inference).methods()
        methods |= AdministrationService(operations.administration).methods()
        stream = rpcs(service, methods)["/inference.GRPCInferenceService/ModelStreamInfer"]
        calls = Calls(RequestRecorder(Metrics(), "none"), 1 << 20, 4)
        contents = [
            content
            async for content in calls.stream(stream, messages(), None, "id", False, "caller")
        ]
        assert CallersOf.callers == ["caller"]
        answers = [pb.ModelStreamInferResponse.FromString(content) for content in contents]
        assert [answer.infer_response.id for answer in answers] == ["1", "2", ""]
        assert answers[0].error_message == ""
        assert answers[0].infer_response.parameters["triton_final_response"].bool_param
        assert "'none' is not found" in answers[1].error_message
        assert "not a inference.ModelInferRequest" in answers[2].error_message

    run_with_operations(tmp_path, scenario, CallersOf)


def test_metadata_describe_the_server_and_the_model(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        server = await call(operations, "ServerMetadata", pb.ServerMetadataRequest())
        assert (server.name, server.version) == (SERVER_NAME, __version__)
        assert list(server.extensions) == operations.inference.extensions()
        request = pb.ModelMetadataRequest(name="linear")
        model = await call(operations, "ModelMetadata", request)
        assert (model.name, list(model.versions)) == ("linear", ["1"])
        specs = [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)]
        assert specs == [("x", "FP32", [-1, 784]), ("scores", "FP32", [-1, 10])]
        with pytest.raises(ModelNotFound):
            await call(operations, "ModelMetadata", pb.ModelMetadataRequest(name="none"))

    run_with_operations(tmp_path, scenario)


def test_readiness_of_the_server_and_of_models(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        for name, version, ready in (
            ("linear", "1", True),
            ("linear", "2", False),
            ("x", "", False),
        ):
            request = pb.ModelReadyRequest(name=name, version=version)
            assert (await call(operations, "ModelReady", request)).ready is ready
        assert (await call(operations, "ServerReady", pb.ServerReadyRequest())).ready
        operations.inference.stopping = True
        assert not (await call(operations, "ServerReady", pb.ServerReadyRequest())).ready
        assert (await call(operations, "ServerLive", pb.ServerLiveRequest())).live

    run_with_operations(tmp_path, scenario)
