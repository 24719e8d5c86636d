"""The gRPC front over real channels, with the project's stubs and with tritonclient's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc
from tritonclient.utils import InferenceServerException

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import ROOT, Mnist, Server


@pytest.fixture(scope="module")
def channel(grpc_server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def triton(grpc_server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(grpc_server.grpc) as client:
        yield client


def error_of(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_predict_takes_pixels_and_pictures(channel: grpc.Channel, mnist: Mnist) -> None:
    stub = digits_pb2_grpc.DigitClassifierStub(channel)
    answer = stub.Predict(digits_pb2.PredictRequest(pixels=mnist.images[:5].tobytes()))
    assert [prediction.digit for prediction in answer.predictions] == mnist.labels[:5].tolist()
    for prediction in answer.predictions:
        assert abs(sum(prediction.probabilities) - 1) < 1e-6
    seven = (ROOT / "docs" / "seven.png").read_bytes()
    picture = digits_pb2.PredictRequest(image=seven, model_name="mnist")
    assert stub.Predict(picture).predictions[0].digit == 7


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (digits_pb2.PredictRequest(), "INVALID_ARGUMENT", "input"),
        (digits_pb2.PredictRequest(pixels=b""), "INVALID_ARGUMENT", "pixels"),
        (digits_pb2.PredictRequest(pixels=bytes(785)), "INVALID_ARGUMENT", "pixels"),
        (digits_pb2.PredictRequest(image=b"no image"), "INVALID_ARGUMENT", "image"),
        (digits_pb2.PredictRequest(pixels=bytes(784), model_name="x"), "NOT_FOUND", "'x'"),
        (digits_pb2.PredictRequest(pixels=bytes(784), model_version="9"), "NOT_FOUND", "9"),
        (digits_pb2.PredictRequest(pixels=bytes(784), model_version="x"), "INVALID_ARGUMENT", "x"),
        (digits_pb2.PredictRequest(pixels=bytes(9 << 20)), "INVALID_ARGUMENT", "max_request_bytes"),
        (digits_pb2.PredictRequest(pixels=bytes(32 << 20)), "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_wrong_predict_request_is_rejected_by_name(
    channel: grpc.Channel, request_: Any, code: str, message: str
) -> None:
    error = error_of(lambda: digits_pb2_grpc.DigitClassifierStub(channel).Predict(request_))
    assert error.code().name == code
    assert message in error.details()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), st.booleans())
def test_arbitrary_pictures_and_pixels_are_never_internal_errors(
    channel: grpc.Channel, garbage: bytes, as_image: bool
) -> None:
    field = {"image" if as_image else "pixels": garbage}
    call = digits_pb2_grpc.DigitClassifierStub(channel).Predict.future(
        digits_pb2.PredictRequest(**field)
    )
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


def test_health_is_the_standard_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "digits.v1.DigitClassifier", "inference.GRPCInferenceService"):
        state = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert state.status == health_pb2.HealthCheckResponse.SERVING
    error = error_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="none")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_tritonclient_infers_with_raw_tensors(triton: InferenceServerClient, mnist: Mnist) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("mnist")
    assert not triton.is_model_ready("none")
    assert triton.get_server_metadata().name == "mnist-service"
    metadata = triton.get_model_metadata("mnist")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("image", "UINT8", [-1, 28, 28])
    ]
    tensor = InferInput("image", [3, 28, 28], "UINT8")
    tensor.set_data_from_numpy(mnist.images[:3])
    outputs = [InferRequestedOutput("probabilities")]
    result = triton.infer("mnist", [tensor], outputs=outputs, request_id="r1")
    assert result.get_response().id == "r1"
    assert result.as_numpy("logits") is None
    assert (result.as_numpy("probabilities").argmax(axis=1) == mnist.labels[:3]).all()


def test_typed_request_has_a_raw_answer(channel: grpc.Channel, mnist: Mnist) -> None:
    request = inference.ModelInferRequest(model_name="mnist")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    tensor.contents.uint_contents.extend(mnist.images[0].ravel().tolist())
    response = inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    (index,) = [i for i, out in enumerate(response.outputs) if out.name == "probabilities"]
    values = np.frombuffer(response.raw_output_contents[index], np.float32)
    assert values.argmax() == mnist.labels[0]

    request.raw_input_contents.append(mnist.images[0].tobytes())
    error = error_of(lambda: inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("shape", "datatype", "array", "message"),
    [
        ([1, 28, 28], "FP32", np.full((1, 28, 28), np.nan, np.float32), "UINT8"),
        ([1, 784], "UINT8", np.zeros((1, 784), np.uint8), "shape"),
    ],
)
def test_tensor_of_another_datatype_or_shape_is_rejected(
    triton: InferenceServerClient, shape: Any, datatype: str, array: np.ndarray, message: str
) -> None:
    tensor = InferInput("image", shape, datatype)
    tensor.set_data_from_numpy(array)
    with pytest.raises(InferenceServerException, match=message) as caught:
        triton.infer("mnist", [tensor])
    assert "INVALID_ARGUMENT" in caught.value.status()


def test_request_id_is_returned_in_the_trailing_metadata(channel: grpc.Channel) -> None:
    stub = digits_pb2_grpc.DigitClassifierStub(channel)
    request = digits_pb2.PredictRequest(pixels=bytes(784))
    _, call = stub.Predict.with_call(request, metadata=[("x-request-id", "call-7")])
    assert ("x-request-id", "call-7") in [tuple(pair) for pair in call.trailing_metadata()]
