"""What an answer and the log quote of a client's text: 200 characters, over both transports."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_identity

NAME = "n" * 1_000_000
IN_A_HEADER = "n" * 4_000  # also for paths: Granian, grpcio and their clients have limits
QUOTED = re.compile(r"n{180,197}\.\.\.")  # the quotation may begin with a slash or a scheme
LONGEST_MESSAGE = 1000
JSON = {"content-type": "application/json"}
INFER = "/v2/models/mnist/infer"
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
IN_MEMORY = {"shared_memory_byte_size": 784}


@pytest.fixture(scope="module")
def target(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    publish_identity(root, "FP32")
    return start_server(root, shared_memory_regions=2)


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def channel(
    request: pytest.FixtureRequest, start_server: Callable[..., Server]
) -> Iterator[tuple[grpc.Channel, Server]]:
    server = start_server(shared_memory_regions=2, fast_grpc=request.param)
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel, server


def check(message: str, words: str) -> None:
    """The text is cut, and what the sentence says after it is whole."""
    assert len(message) <= LONGEST_MESSAGE
    quotation, *others = QUOTED.findall(message)
    assert others == []
    assert "n" * 198 not in message
    assert words in message.partition(quotation)[2]


def check_log(server: Server, message: str) -> None:
    """The last line of the log has the message, and nothing longer."""
    lines = server.log.read_text().splitlines()
    assert json.loads(lines[-1])["message"] == message
    assert max(map(len, lines)) < 2 * LONGEST_MESSAGE


def infer(**fields: Any) -> bytes:
    body = {"inputs": [IMAGE]} | {k: v for k, v in fields.items() if k == "outputs"}
    tensor = IMAGE | {k: v for k, v in fields.items() if k != "outputs"}
    if "shared_memory_region" in str(fields.get("parameters")):
        tensor = {key: value for key, value in tensor.items() if key != "data"}
    return json.dumps(body | {"inputs": [tensor]}).encode()


def of_region(name: str) -> str:
    return f"/v2/systemsharedmemory/region/{name}"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "words"),
    [
        ("GET", f"/v2/models/{IN_A_HEADER}", {}, b"", "is not found; loaded are: "),
        ("GET", f"/v2/models/mnist/versions/{IN_A_HEADER}", {}, b"", "is not a whole number"),
        ("POST", f"/predict?model={IN_A_HEADER}", {}, bytes(784), "is not found"),
        ("POST", f"/predict?version={IN_A_HEADER}", {}, bytes(784), "is not a whole number"),
        ("GET", f"/{IN_A_HEADER}", {}, b"", "GET / lists all endpoints."),
        ("DELETE", f"/v2/models/{IN_A_HEADER}", {}, b"", "does not take DELETE."),
        ("POST", "/predict", {"content-type": IN_A_HEADER}, b"x", "send application/json"),
        ("POST", INFER, {"content-encoding": IN_A_HEADER}, b"x", "send gzip"),
        (
            "POST",
            INFER,
            {"inference-header-content-length": IN_A_HEADER},
            b"x",
            "is not a length.",
        ),
        ("POST", INFER, JSON, infer(name=NAME), "which takes: image."),
        ("POST", INFER, JSON, infer(datatype=NAME), "model 'mnist' expects 'UINT8'."),
        ("POST", INFER, JSON, infer(outputs=[{"name": NAME}]), "which gives: "),
        (
            "POST",
            INFER,
            {"inference-header-content-length": "1000138"},
            json.dumps(
                {
                    "inputs": [
                        {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
                        | {"parameters": {"binary_data_size": NAME}}
                    ]
                }
            )
            .encode()
            .ljust(1000138),
            "bytes of binary data are left",
        ),
        (
            "POST",
            INFER,
            JSON,
            infer(parameters={"shared_memory_region": NAME, **IN_MEMORY}),
            "is not registered.",
        ),
        (
            "POST",
            INFER,
            JSON,
            infer(name=NAME, parameters={"shared_memory_region": "r", **IN_MEMORY}),
            "shared memory region: 'r' is not registered.",
        ),
        ("POST", "/v2/logging", JSON, json.dumps({NAME: 1}).encode(), "they are log_file"),
        ("POST", "/v2/trace/setting", JSON, json.dumps({NAME: 1}).encode(), "they are trace_level"),
        (
            "POST",
            "/v2/repository/models/mnist/load",
            JSON,
            json.dumps({"parameters": {NAME: 1}}).encode(),
            "is not supported; a model is loaded as it is",
        ),
        ("POST", f"/v2/repository/models/{IN_A_HEADER}/load", JSON, b"", "failed to poll"),
        ("POST", f"/v2/repository/models/{IN_A_HEADER}/unload", JSON, b"", "is not in the"),
        (
            "POST",
            "/v2/repository/models/mnist/load",
            {"origin": f"http://{IN_A_HEADER}"},
            b"{}",
            "in allowed_origins to allow them.",
        ),
        ("POST", "/v2/logging", {"host": IN_A_HEADER}, b"{}", "in allowed_hosts to allow it."),
        ("POST", "/v2/logging", {"host": f"{IN_A_HEADER}:abc"}, b"{}", "is malformed."),
        ("GET", f"{of_region(IN_A_HEADER)}/status", {}, b"", "is not registered."),
        ("GET", f"/v2/cudasharedmemory/region/{IN_A_HEADER}/status", {}, b"", "is not registered."),
        (
            "POST",
            f"{of_region('r')}/register",
            JSON,
            json.dumps({"key": "n" * 250, "byte_size": 1}).encode(),
            "cannot be opened: No such file or directory.",
        ),
        (
            "POST",
            f"{of_region(IN_A_HEADER)}/register",
            JSON,
            json.dumps({"key": "k", "byte_size": -1}).encode(),
            "offset or byte_size is out of range.",
        ),
    ],
    ids=lambda value: str(value)[:60].partition("n" * 20)[0] if isinstance(value, str) else "",
)
def test_http_quotes_the_beginning_alone(
    target: Server, method: str, path: str, headers: dict[str, str], body: bytes, words: str
) -> None:
    if path.startswith("/predict?"):
        headers = {"content-type": "application/octet-stream"}
    status, content = target.request(method, path, body or None, headers)
    assert 400 <= status < 500 or status == 501, content[:500]
    message = json.loads(content)["error"]
    check(message, words)
    check_log(target, message)


def test_a_shape_of_half_a_million_dimensions_is_cut(target: Server) -> None:
    status, answer = target.post(INFER, infer(shape=[1] * 500_000), "application/json")
    assert status == 400
    assert len(answer["error"]) < 400
    assert "1,1,1" in answer["error"]
    assert "Expected [-1,28,28], got" in answer["error"]
    check_log(target, answer["error"])


def model_infer(**fields: Any) -> inference.ModelInferRequest:
    """A request of one input; `input_` sets fields of it, `region` its place."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]} | fields.pop("input_", {})
    region = fields.pop("region", "")
    request = inference.ModelInferRequest(**{"model_name": "mnist"} | fields)
    entry = request.inputs.add(**tensor)
    if region:
        entry.parameters["shared_memory_region"].string_param = region
        entry.parameters["shared_memory_byte_size"].int64_param = 784
    else:
        request.raw_input_contents.append(bytes(784))
    return request


def typed(**fields: Any) -> inference.ModelInferRequest:
    request = model_infer(input_=fields)
    request.ClearField("raw_input_contents")
    return request


def log_settings() -> inference.LogSettingsRequest:
    request = inference.LogSettingsRequest()
    request.settings[NAME].bool_param = True
    return request


def trace_settings() -> inference.TraceSettingRequest:
    request = inference.TraceSettingRequest()
    request.settings[NAME].value.append("x")
    return request


def load_with_parameter() -> inference.RepositoryModelLoadRequest:
    request = inference.RepositoryModelLoadRequest(model_name="mnist")
    request.parameters[NAME].string_param = "x"
    return request


def output(name: str) -> Any:
    return inference.ModelInferRequest.InferRequestedOutputTensor(name=name)


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        ("ModelInfer", model_infer(model_name=NAME), "is not found; loaded are: "),
        ("ModelInfer", model_infer(model_version=NAME), "is not a whole number"),
        ("ModelInfer", model_infer(input_={"name": NAME}), "which takes: image."),
        ("ModelInfer", model_infer(input_={"datatype": NAME}), "model 'mnist' expects 'UINT8'."),
        ("ModelInfer", typed(datatype=NAME), "has no typed contents; send raw_input_contents."),
        ("ModelInfer", typed(name=NAME, datatype="FP16"), "has no typed contents"),
        ("ModelInfer", model_infer(outputs=[output(NAME)]), "which gives: "),
        ("ModelInfer", model_infer(region=NAME), "is not registered."),
        ("ModelInfer", model_infer(region="r", input_={"name": NAME}), "is not registered."),
        ("ModelMetadata", inference.ModelMetadataRequest(name=NAME), "is not found"),
        ("ModelConfig", inference.ModelConfigRequest(name=NAME), "is not found"),
        ("ModelStatistics", inference.ModelStatisticsRequest(name=NAME), "is not found"),
        (
            "RepositoryIndex",
            inference.RepositoryIndexRequest(repository_name=NAME),
            "'.",
        ),
        (
            "RepositoryModelLoad",
            inference.RepositoryModelLoadRequest(model_name=NAME),
            "failed to poll from model repository: it has no version there.",
        ),
        ("RepositoryModelLoad", load_with_parameter(), "is not supported; a model is loaded"),
        (
            "RepositoryModelUnload",
            inference.RepositoryModelUnloadRequest(model_name=NAME),
            "is not in the repository.",
        ),
        ("LogSettings", log_settings(), "is not a log setting; they are log_file"),
        ("TraceSetting", trace_settings(), "is not a trace setting; they are trace_level"),
        (
            "SystemSharedMemoryStatus",
            inference.SystemSharedMemoryStatusRequest(name=NAME),
            "is not registered.",
        ),
        (
            "SystemSharedMemoryRegister",
            inference.SystemSharedMemoryRegisterRequest(name="r", key="n" * 250, byte_size=1),
            "cannot be opened: No such file or directory.",
        ),
        (
            "SystemSharedMemoryRegister",
            inference.SystemSharedMemoryRegisterRequest(name=NAME, key="k", byte_size=0),
            "offset or byte_size is out of range.",
        ),
        (
            "CudaSharedMemoryStatus",
            inference.CudaSharedMemoryStatusRequest(name=NAME),
            "is not registered.",
        ),
    ],
    ids=lambda value: value.partition(":")[0][:40] if isinstance(value, str) else "",
)
def test_grpc_quotes_the_beginning_alone(
    channel: tuple[grpc.Channel, Server], method: str, request_: Any, words: str
) -> None:
    calls, server = channel
    with pytest.raises(grpc.RpcError) as raised:
        getattr(inference_grpc.GRPCInferenceServiceStub(calls), method)(request_)
    check(raised.value.details(), words)
    check_log(server, raised.value.details())


def test_a_stream_quotes_the_beginning_alone(channel: tuple[grpc.Channel, Server]) -> None:
    calls, server = channel
    stub = inference_grpc.GRPCInferenceServiceStub(calls)
    (answer,) = stub.ModelStreamInfer(iter([model_infer(model_name=NAME)]))
    check(answer.error_message, "is not found; loaded are: mnist.")
    check_log(server, answer.error_message)


def test_digits_and_health_quote_the_beginning_alone(channel: tuple[grpc.Channel, Server]) -> None:
    calls, server = channel
    digits = digits_pb2_grpc.DigitClassifierStub(calls)
    health = health_pb2_grpc.HealthStub(calls)
    pixels = bytes(784)
    for call, request, words in (
        (digits.Predict, digits_pb2.PredictRequest(pixels=pixels, model_name=NAME), "is not found"),
        (digits.Predict, digits_pb2.PredictRequest(pixels=pixels, model_version=NAME), "is not a"),
        (health.Check, health_pb2.HealthCheckRequest(service=NAME), "'."),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call(request)
        check(raised.value.details(), words)
        check_log(server, raised.value.details())
