"""inference.GRPCInferenceService: health, metadata and inference.

Source: Open Inference Protocol (KServe V2), "gRPC"; Triton's service of that name for streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from service import __version__
from service.core.errors import ModelNotFound, Overloaded, ServiceError
from service.core.off_loop import INLINE_BYTES, off_loop
from service.core.tensors import TensorSpec
from service.grpc.answering import Call, Method, Pipelined, Unary
from service.grpc.codec import decode, encode, is_typed
from service.operations.inference import Inference
from service.stubs.inference import inference_pb2 as pb

_Tensor = pb.ModelMetadataResponse.TensorMetadata


class OpenInference:
    """The data-plane methods; those of the control plane are in `administration`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def methods(self) -> dict[str, Method]:
        """The methods by their names in proto/inference/inference.proto."""
        return {
            "ServerLive": Unary("live", self._live, scope=None),
            "ServerReady": Unary("ready", self._ready, scope=None),
            "ModelReady": Unary("model_ready", self._model_ready, scope="read"),
            "ServerMetadata": Unary("server_metadata", self._server_metadata, scope="read"),
            "ModelMetadata": Unary("model_metadata", self._model_metadata, scope="read"),
            "ModelInfer": Unary("infer", self._infer, self._refusal, scope="predict"),
            "ModelStreamInfer": Pipelined(
                "stream_infer", self._stream_infer, _refuse, scope="predict"
            ),
        }

    async def _live(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._inference.readiness().ready)

    async def _model_ready(
        self, request: pb.ModelReadyRequest, call: Call
    ) -> pb.ModelReadyResponse:
        try:
            self._inference.repository.get(request.name, request.version)
        except ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=self._inference.server_name,
            version=__version__,
            extensions=self._inference.extensions(),
        )

    async def _model_metadata(
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        metadata = self._inference.model_metadata(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=metadata.name,
            versions=metadata.versions,
            platform=metadata.platform,
            inputs=_tensors(metadata.inputs),
            outputs=_tensors(metadata.outputs),
            properties=metadata.properties,
        )

    async def _infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        typed = self._inference.typed_answers and is_typed(request)
        answering = self._inference.infer(decode(request, call.deadline, call.caller), call.trace)
        del request  # it has its contents a second time
        answer = await answering
        # All bytes first: of the usual few, it does not matter how slow they are.
        size = 0
        for output in answer.outputs:
            size += output.array.nbytes
        if size > INLINE_BYTES:
            size = sum([output.slow_bytes(not typed) for output in answer.outputs])
            if size > INLINE_BYTES:
                return await off_loop(encode, answer, typed, size=size)
        return encode(answer, typed)

    def _refusal(self, model: str, version: str, call: Call) -> Overloaded | None:
        return self._inference.refusal(model, version, call.deadline, call.caller)

    async def _stream_infer(
        self, request: pb.ModelInferRequest, call: Call
    ) -> pb.ModelStreamInferResponse:
        response = await self._infer(request, call)
        # Tells clients that ask for it that this is the only response to their request.
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)


def _refuse(request: object, error: ServiceError) -> pb.ModelStreamInferResponse:
    response = pb.ModelStreamInferResponse(error_message=error.message)
    if isinstance(request, pb.ModelInferRequest):
        response.infer_response.id = request.id
    return response


def _tensors(specs: Iterable[TensorSpec]) -> list[_Tensor]:
    return [_Tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]
