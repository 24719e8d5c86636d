"""ModelStreamInfer, health and reflection, over real channels."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from tests.conftest import SHIPPED_MODELS, Mnist, Server
from tests.e2e.onnx_models import publish_slow_model
from tests.e2e.triton import Triton


@pytest.fixture(scope="module")
def channel(grpc_server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        yield channel


def request_for(mnist: Mnist, index: int, model: str = "mnist") -> inference.ModelInferRequest:
    request = inference.ModelInferRequest(model_name=model, id=str(index))
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(mnist.images[index].tobytes())
    return request


def digit(response: inference.ModelInferResponse) -> int:
    index = [output.name for output in response.outputs].index("probabilities")
    return int(np.frombuffer(response.raw_output_contents[index], np.float32).argmax())


def test_tritonclient_streams(grpc_server: Server, mnist: Mnist) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(grpc_server.grpc) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        tensor = tritonclient.grpc.InferInput("image", [1, 28, 28], "UINT8")
        for index in range(20):
            tensor.set_data_from_numpy(mnist.images[index : index + 1])
            model = "none" if index == 5 else "mnist"
            client.async_stream_infer(
                model, [tensor], request_id=str(index), enable_empty_final_response=True
            )
        answers = [results.get(timeout=120) for _ in range(20)]
        client.stop_stream()
    assert "'none' is not found" in answers[5][1].message()
    for index, (result, error) in enumerate(answers):
        if index == 5:
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(index)
        assert response.parameters["triton_final_response"].bool_param
        assert result.as_numpy("probabilities").argmax() == mnist.labels[index]


def test_asyncio_tritonclient_streams(grpc_server: Server, mnist: Mnist) -> None:
    triton = Triton("grpc.aio", grpc_server)

    async def requests() -> Any:
        for index in range(10):
            tensor = triton.input("image", mnist.images[index : index + 1], "UINT8")
            model = "none" if index == 5 else "mnist"
            yield {"model_name": model, "inputs": [tensor], "request_id": str(index)}

    async def stream() -> list[Any]:
        return [answer async for answer in triton.client.stream_infer(requests())]

    answers = triton.run(stream())
    triton.close()
    assert len(answers) == 10
    assert "'none' is not found" in str(answers[5][1])
    digits = [result.as_numpy("probabilities").argmax() for result, error in answers if not error]
    assert digits == [int(label) for i, label in enumerate(mnist.labels[:10]) if i != 5]


def test_error_in_a_stream_has_the_id_of_its_request(channel: grpc.Channel, mnist: Mnist) -> None:
    stub = inference_grpc.GRPCInferenceServiceStub(channel)
    wrong = request_for(mnist, 1)
    wrong.inputs[0].datatype = "FP32"
    answers = list(stub.ModelStreamInfer(iter([wrong, request_for(mnist, 2)])))
    assert "UINT8" in answers[0].error_message
    assert answers[0].infer_response.id == "1"
    assert answers[1].error_message == ""
    assert digit(answers[1].infer_response) == mnist.labels[2]


def test_stream_with_triton_grpc_error_ends_with_the_first_error(
    channel: grpc.Channel, mnist: Mnist
) -> None:
    stub = inference_grpc.GRPCInferenceServiceStub(channel)
    requests = [request_for(mnist, 0), request_for(mnist, 1, "none"), request_for(mnist, 2)]
    stream = stub.ModelStreamInfer(iter(requests), metadata=[("triton_grpc_error", "true")])
    assert digit(next(stream).infer_response) == mnist.labels[0]
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_malformed_and_oversized_messages_do_not_end_a_stream(
    channel: grpc.Channel, mnist: Mnist
) -> None:
    raw = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    good = request_for(mnist, 0).SerializeToString()
    answers = [
        inference.ModelStreamInferResponse.FromString(answer)
        for answer in raw(iter([b"\xff\xff", bytes(9 << 20), good]))
    ]
    assert "inference.ModelInferRequest" in answers[0].error_message
    assert "max_request_bytes" in answers[1].error_message
    assert digit(answers[2].infer_response) == mnist.labels[0]


def test_answers_have_the_order_of_their_requests(channel: grpc.Channel, mnist: Mnist) -> None:
    stub = inference_grpc.GRPCInferenceServiceStub(channel)
    requests = [request_for(mnist, index) for index in range(300)]
    answers = [answer.infer_response for answer in stub.ModelStreamInfer(iter(requests))]
    assert [answer.id for answer in answers] == [str(index) for index in range(300)]
    correct = [digit(a) == label for a, label in zip(answers, mnist.labels, strict=False)]
    assert sum(correct) > 290


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def slow_server(
    request: pytest.FixtureRequest,
    start_server: Callable[..., Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    root = tmp_path_factory.mktemp("slow")
    publish_slow_model(root)
    return start_server(root, max_stream_requests=4, fast_grpc=request.param)


def inferred(stub: Any) -> tuple[int, int]:
    """The number of images inferred so far, and of runs of the model."""
    (model,) = stub.ModelStatistics(inference.ModelStatisticsRequest(name="mnist")).model_stats
    return model.inference_count, model.execution_count


def test_requests_of_a_stream_share_batches(slow_server: Server, mnist: Mnist) -> None:
    with grpc.insecure_channel(slow_server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        images, runs = inferred(stub)
        answers = list(stub.ModelStreamInfer(iter([request_for(mnist, i) for i in range(9)])))
        assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(9)]
        assert inferred(stub)[0] - images == 9
        assert inferred(stub)[1] - runs < 9


def test_cancelled_stream_runs_no_further_requests(slow_server: Server, mnist: Mnist) -> None:
    with grpc.insecure_channel(slow_server.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        before, _ = inferred(stub)
        stream = stub.ModelStreamInfer(iter([request_for(mnist, i) for i in range(100)]))
        next(stream)
        stream.cancel()
        assert stub.ModelInfer(request_for(mnist, 0)).id == "0"
        assert inferred(stub)[0] - before <= 10  # one is answered, four are in progress at a time
    assert "Traceback" not in slow_server.log.read_text()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "mnist" / "1")
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "other" / "1")
    return tmp_path


@pytest.mark.parametrize("fast_grpc", [True, False])
def test_health_of_each_model_is_checked_and_watched(
    start_server: Callable[..., Server], repository: Path, fast_grpc: bool
) -> None:
    mode = {"model_control_mode": "explicit", "load_model": "*"}
    server = start_server(repository, fast_grpc=fast_grpc, **mode)
    states = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "mnist", "mnist/1", "other/1"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == states.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=120)
        assert next(watch).status == states.SERVING
        triton = Triton("grpc", server)
        triton.unload_model("other")
        assert next(watch).status == states.NOT_SERVING
        triton.load_model("other")
        assert next(watch).status == states.SERVING
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="none"), timeout=120)
        assert next(unknown).status == states.SERVICE_UNKNOWN
        triton.unload_model("mnist")
        # It is the default model, which digits need; the server still serves what it was asked to.
        for name, status in (("digits.v1.DigitClassifier", "NOT_SERVING"), ("", "SERVING")):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == getattr(states, status)
        triton.close()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_lists_and_describes_the_services(channel: grpc.Channel, version: str) -> None:
    info = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**question: str) -> Any:
        (answer,) = info(iter([reflection_pb2.ServerReflectionRequest(**question)]))
        return answer

    listed = {service.name for service in ask(list_services="").list_services_response.service}
    assert listed == {
        "digits.v1.DigitClassifier",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
    for symbol in (
        "inference.GRPCInferenceService",
        "digits.v1.PredictRequest",
        "grpc.reflection.v1.ServerReflection",
    ):
        answer = ask(file_containing_symbol=symbol)
        assert answer.file_descriptor_response.file_descriptor_proto
