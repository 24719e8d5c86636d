"""inference.GRPCInferenceService: translation between its messages and the operations.

Source: Open Inference Protocol (KServe V2), "gRPC" and "Raw Tensor Contents".
"""

from __future__ import annotations

from collections.abc import Iterable

from service import SERVER_NAME, __version__
from service.core.errors import InvalidArgument, ModelNotFound
from service.core.tensors import Tensor, TensorSpec, datatype_of
from service.grpc.calls import Calls, Context
from service.operations import InferRequest, InferResponse, InputTensor, Operations
from service.stubs.inference import inference_pb2 as pb
from service.stubs.inference import inference_pb2_grpc

# Datatype -> the field of InferTensorContents that carries it. FP16 travels raw only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The servicer of proto/inference/inference.proto."""

    def __init__(self, operations: Operations, calls: Calls) -> None:
        self._operations = operations
        self._calls = calls

    async def ModelInfer(  # noqa: N802 (the names in the proto, here and below)
        self,
        request: pb.ModelInferRequest,
        context: Context[pb.ModelInferRequest, pb.ModelInferResponse],
    ) -> pb.ModelInferResponse:
        return await self._calls.answer("infer", self._infer, request, context)

    async def ServerLive(  # noqa: N802
        self,
        request: pb.ServerLiveRequest,
        context: Context[pb.ServerLiveRequest, pb.ServerLiveResponse],
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self,
        request: pb.ServerReadyRequest,
        context: Context[pb.ServerReadyRequest, pb.ServerReadyResponse],
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._operations.readiness().ready)

    async def ModelReady(  # noqa: N802
        self,
        request: pb.ModelReadyRequest,
        context: Context[pb.ModelReadyRequest, pb.ModelReadyResponse],
    ) -> pb.ModelReadyResponse:
        return await self._calls.answer("model_ready", self._model_ready, request, context)

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,
        context: Context[pb.ServerMetadataRequest, pb.ServerMetadataResponse],
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=__version__)

    async def ModelMetadata(  # noqa: N802
        self,
        request: pb.ModelMetadataRequest,
        context: Context[pb.ModelMetadataRequest, pb.ModelMetadataResponse],
    ) -> pb.ModelMetadataResponse:
        return await self._calls.answer("model_metadata", self._model_metadata, request, context)

    async def _infer(
        self, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        answer = await self._operations.infer(decode(request, deadline))
        return encode(answer, raw=bool(request.raw_input_contents))

    async def _model_ready(
        self, request: pb.ModelReadyRequest, deadline: float | None
    ) -> pb.ModelReadyResponse:
        try:
            self._operations.repository.get(request.name, request.version)
        except ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(
        self, request: pb.ModelMetadataRequest, deadline: float | None
    ) -> pb.ModelMetadataResponse:
        found = self._operations.model_metadata(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=found.name,
            versions=found.versions,
            platform=found.platform,
            inputs=_metadata(found.inputs),
            outputs=_metadata(found.outputs),
        )


def decode(request: pb.ModelInferRequest, deadline: float | None) -> InferRequest:
    """A message as a request; raw contents are passed on as they are.

    Raises InvalidArgument if there are raw contents and typed ones, or not one raw for each input.
    """
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(
            f"raw_input_contents: has {len(raws)} entries for {len(request.inputs)} inputs."
        )
    inputs = []
    for index, tensor in enumerate(request.inputs):
        if not raws:
            values = _typed(tensor)
            inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, values=values))
        elif tensor.HasField("contents"):
            raise InvalidArgument(
                f"Input '{tensor.name}' has contents although raw_input_contents is used."
            )
        else:
            inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, raws[index]))
    outputs = [output.name for output in request.outputs]
    return InferRequest(
        request.model_name, request.model_version, inputs, outputs, request.id, deadline
    )


def encode(answer: InferResponse, raw: bool) -> pb.ModelInferResponse:
    """An answer as a message, its values raw or typed."""
    outputs = []
    for tensor in answer.outputs:
        datatype = datatype_of(tensor.array.dtype)
        output = pb.ModelInferResponse.InferOutputTensor(
            name=tensor.name, datatype=datatype, shape=tensor.array.shape
        )
        if not raw and datatype in _CONTENTS:
            getattr(output.contents, _CONTENTS[datatype]).extend(tensor.array.ravel().tolist())
        outputs.append(output)
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.id,
        outputs=outputs,
        raw_output_contents=_raw(answer.outputs) if raw else (),
    )


def _raw(tensors: Iterable[Tensor]) -> list[bytes]:
    return [tensor.array.tobytes() for tensor in tensors]


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> list[object]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidArgument(
            f"Input '{tensor.name}': datatype '{tensor.datatype}' has no typed contents here; "
            "send raw_input_contents."
        )
    return list(getattr(tensor.contents, field))


def _metadata(specs: Iterable[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=spec.name, datatype=spec.datatype, shape=spec.shape
        )
        for spec in specs
    ]
