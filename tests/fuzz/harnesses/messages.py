"""Messages of every unary gRPC method, from bytes to bytes, and two streams.

The first byte chooses the method. The second says whether the rest is the message itself, or a
recipe for a ModelInferRequest or a PredictRequest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from service.core.errors import InternalError, ServiceError
from service.grpc import digits as digits_service
from service.grpc import health as health_service
from service.grpc.administration import AdministrationService
from service.grpc.answering import Calls, Pipelined, Unary, rpcs
from service.grpc.open_inference import OpenInference
from service.stubs.digits.v1 import digits_pb2
from service.stubs.inference import inference_pb2 as pb
from tests.fuzz.application import MEMORY, MODELS, Application
from tests.fuzz.fields import Fields

CI_RUNS = 5_000
_APPLICATION = Application(regions=2)
_HEALTH = health_service.Health()
_HEALTH.publish({"": True, "mnist": True})
_CALLS = Calls(_APPLICATION.recorder, 1 << 16, 4)
_RPCS = {
    **rpcs(
        pb.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        OpenInference(_APPLICATION.operations.inference).methods()
        | AdministrationService(_APPLICATION.operations.administration).methods(),
    ),
    **rpcs(digits_service.DESCRIPTOR, digits_service.methods(_APPLICATION.operations.digits)),
    **rpcs(health_service.DESCRIPTOR, _HEALTH.methods()),
}
# ModelInfer comes first; reloading a model takes a hundred times as long as any other call.
_METHODS = sorted(
    (path for path, rpc in _RPCS.items() if not isinstance(rpc.method, type(None))),
    key=lambda path: (not path.endswith("Infer"), path),
)
_METHODS = [
    p
    for p in _METHODS
    if "Model/" not in p and "ModelLoad" not in p and "ModelUnload" not in p and "Watch" not in p
]
_CODES = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS", "UNIMPLEMENTED"),
    *("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
}
_DATATYPES = ("FP32", "UINT8", "BOOL", "INT32", "UINT64", "FP16", "FP64", "BF16", "BYTES", "", "X")
_CONTENTS = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]


def _of(suffix: str) -> int:
    return next(i for i, path in enumerate(_METHODS) if path.endswith(suffix))


def _seed(suffix: str, message: Any) -> bytes:
    return bytes([_of(suffix), 0]) + message.SerializeToString()


def _infer(model: str, datatype: str, shape: list[int], raw: bytes) -> Any:
    request = pb.ModelInferRequest(model_name=model, id="an id")
    request.inputs.add(name="image" if model == "mnist" else "x", datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    return request


_TYPED = pb.ModelInferRequest(model_name="identity_bytes")
_TYPED.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend(
    [b"a", b"\xff"]
)
_IN_MEMORY = pb.ModelInferRequest(model_name="identity_fp32")
_IN_MEMORY.inputs.add(name="x", datatype="FP32", shape=[1, 2]).parameters[
    "shared_memory_region"
].string_param = "r"
_IN_MEMORY.inputs[0].parameters["shared_memory_byte_size"].int64_param = 8
_IN_MEMORY.parameters["timeout"].int64_param = 10**7
SEEDS = [
    _seed("/ModelInfer", _infer("identity_fp32", "FP32", [1, 2], bytes(8))),
    _seed("/ModelInfer", _infer("mnist", "UINT8", [1, 28, 28], bytes(784))),
    _seed("/ModelInfer", _TYPED),
    _seed("/ModelInfer", _IN_MEMORY),
    _seed("/ModelStreamInfer", _infer("identity_uint8", "UINT8", [1, 2], b"ab")),
    _seed("/Predict", digits_pb2.PredictRequest(pixels=bytes(784))),
    _seed("/Predict", digits_pb2.PredictRequest(image=b"\x89PNG\r\n\x1a\n")),
    _seed(
        "/SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="r", key=MEMORY, byte_size=64),
    ),
    _seed(
        "/LogSettings",
        pb.LogSettingsRequest(
            settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=True)}
        ),
    ),
    _seed(
        "/TraceSetting",
        pb.TraceSettingRequest(
            settings={"trace_level": pb.TraceSettingRequest.SettingValue(value=["OFF"])}
        ),
    ),
    *(bytes([index, 0]) for index in range(len(_METHODS))),
    *(bytes([0, 1, model, *range(1, 90)]) for model in range(len(MODELS))),
    *(bytes([0, 1, model, *range(200, 20, -1)]) for model in range(len(MODELS))),
]
TOKENS = [
    *(name.encode() for name in (*MODELS, *_DATATYPES, "x", "y", "r", MEMORY, "OFF")),
    *(b"timeout", b"classification", b"shared_memory_region", b"shared_memory_byte_size"),
]


def check(data: bytes) -> None:
    fields = Fields(data)
    rpc = _RPCS[_METHODS[fields.byte() % len(_METHODS)]]
    if fields.byte() % 4 == 1 and rpc.request is pb.ModelInferRequest:
        content = _request(fields).SerializeToString()
    else:
        content = fields.rest()
    try:
        if isinstance(rpc.method, Unary):
            answers = [_APPLICATION.run(_CALLS.answer(rpc, content, None, "id"))]
        else:
            answers = _APPLICATION.run(_stream(rpc, content))
    except ServiceError as error:
        assert not isinstance(error, InternalError), error.__cause__
        assert error.grpc_code in _CODES
        assert error.message.strip()
        assert len(error.message) <= 1000
        answers = []
    _APPLICATION.check_intact()
    for answer in answers:
        parsed = rpc.response.FromString(answer)
        if isinstance(parsed, pb.ModelInferResponse):
            _check_tensors(parsed)


async def _stream(rpc: Any, content: bytes) -> list[bytes]:
    """The answers to the same message, sent twice."""
    assert isinstance(rpc.method, Pipelined)

    async def contents() -> AsyncIterator[bytes]:
        yield content
        yield content

    answers = [answer async for answer in _CALLS.stream(rpc, contents(), None, "id", False)]
    assert len(answers) == 2
    first, second = (rpc.response.FromString(answer) for answer in answers)
    if "passed" not in first.error_message + second.error_message:  # a timeout of microseconds
        assert first == second
    assert "Internal error" not in first.error_message
    return answers


def _check_tensors(response: Any) -> None:
    """Every output has the number of values that its shape says."""
    sizes = {
        "BOOL": 1,
        "UINT8": 1,
        "INT32": 4,
        "UINT64": 8,
        "FP16": 2,
        "FP32": 4,
        "FP64": 8,
        "BF16": 2,
    }
    for index, output in enumerate(response.outputs):
        count = 1
        for size in output.shape:
            count *= size
        if output.parameters:
            continue  # it is in shared memory
        if response.raw_output_contents:
            raw = response.raw_output_contents[index]
            assert output.datatype not in sizes or len(raw) == count * sizes[output.datatype]
        else:
            values = [value for _, value in output.contents.ListFields()]
            assert sum(map(len, values)) == count


def _request(fields: Fields) -> Any:
    """The ModelInferRequest that a recipe stands for."""
    model = fields.of(MODELS)
    request = pb.ModelInferRequest(model_name=model)
    options = fields.byte()
    request.id = fields.of(("", "a", "é"))
    for _ in range(1 + options % 2 if model != "sum" else 2):
        tensor = request.inputs.add(
            name="image" if model == "mnist" else fields.of(("x", "a", "b", "y"))
        )
        own = model.rpartition("_")[2].upper()
        tensor.datatype = own if own in _DATATYPES and options & 4 else fields.of(_DATATYPES)
        shape = (
            [1, 2]
            if options & 8
            else [
                _int64(fields) if fields.byte() > 240 else fields.byte() % 4
                for _ in range(fields.byte() % 4)
            ]
        )
        tensor.shape.extend(shape)
        if options & 16:
            contents = getattr(tensor.contents, fields.of(_CONTENTS))
            for _ in range(fields.byte() % 4):
                try:
                    contents.append(fields.of((1, 0, 1.5, 3, b"a", b"\xff", -1, 2**40)))
                except (TypeError, ValueError):
                    contents.extend([])
        else:
            request.raw_input_contents.append(fields.take(fields.byte() % 20))
        if options & 32:
            _fill(tensor.parameters, fields)
    if options & 64:
        _fill(request.outputs.add(name=fields.of(("y", "total", "x"))).parameters, fields)
    if options & 128:
        _fill(request.parameters, fields)
    return request


def _fill(parameters: Any, fields: Fields) -> None:
    names = (
        *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"),
        *("classification", "timeout", "priority", "sequence_id", "sequence_start", "other"),
    )
    for _ in range(1 + fields.byte() % 3):
        parameter = parameters[fields.of(names)]
        match fields.byte() % 6:
            case 0:
                parameter.string_param = fields.of(("r", "", "x"))
            case 1:
                parameter.int64_param = _int64(fields)
            case 2:
                parameter.bool_param = True
            case 3:
                parameter.double_param = 1.5
            case 4:
                parameter.uint64_param = _int64(fields) % 2**64


def _int64(fields: Fields) -> int:
    return max(-(2**63), min(fields.number(), 2**63 - 1))
