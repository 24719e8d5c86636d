"""The gRPC front of a worker: every service, on one port that all workers share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, Protocol

from google.protobuf import descriptor_pb2, text_format
from grpc_reflection.v1alpha import reflection_pb2

from service.access.gate import Gate
from service.access.tls import Tls
from service.core.budget import Budget
from service.core.callers import Callers
from service.core.errors import Overloaded
from service.core.turns import Turns
from service.grpc import digits as digits_service
from service.grpc import health as health_service
from service.grpc.administration import AdministrationService
from service.grpc.answering import Call, Calls, Rpc, Streaming, rpcs
from service.grpc.health import Health
from service.grpc.http2.listener import Http2Server
from service.grpc.open_inference import OpenInference
from service.observe.recorder import RequestRecorder
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference
from service.repository.models import ServedModel
from service.settings import Settings
from service.stubs.inference import inference_pb2

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_DIGITS = digits_service.DESCRIPTOR.full_name
_SERVICES = (_DIGITS, _INFERENCE.full_name)
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
# The name under which newer clients ask first; grpcio-reflection has only v1alpha.
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class Server(Protocol):
    """A carrier of calls: our own HTTP/2 or grpcio."""

    async def start(self, listener: socket.socket | None = None) -> None:
        """Serve calls from now on: on a socket that is bound, or else on the port."""

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; let those in flight finish within `timeout` seconds."""


class GrpcFront:
    """All gRPC services of one worker."""

    def __init__(
        self,
        *,
        inference: Inference,
        digits: Digits,
        administration: Administration,
        recorder: RequestRecorder,
        settings: Settings,
        budget: Budget,
        callers: Callers,
        turns: Turns,
        gate: Gate | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._inference = inference
        self._health = Health()
        limits = settings.max_request_bytes, settings.max_stream_requests, settings.max_json_bytes
        self._calls = Calls(recorder, *limits, inference.overloaded, gate)
        open_inference = OpenInference(inference).methods()
        open_inference |= AdministrationService(administration).methods()
        methods = {
            **rpcs(digits_service.DESCRIPTOR, digits_service.methods(digits, self._refusal)),
            **rpcs(_INFERENCE, open_inference),
            **rpcs(health_service.DESCRIPTOR, self._health.methods()),
            **_reflection(),
        }
        self._server: Server
        if settings.fast_grpc:
            self._server = Http2Server(methods, self._calls, settings, budget, callers, tls, turns)
        else:
            # Not above: grpcio takes 8 MB of a worker that does not need it.
            from service.grpc.grpcio_server import GrpcioServer

            self._server = GrpcioServer(methods, self._calls, settings, budget, callers, tls)

    def _refusal(self, model: str, version: str, call: Call) -> Overloaded | None:
        return self._inference.refusal(
            model or self._inference.default_model, version, call.deadline, call.caller
        )

    async def start(self, listener: socket.socket | None = None) -> None:
        """Publish the state of the models, then listen: on a bound socket, or else on the port."""
        self.publish_health()
        await self._server.start(listener)

    def publish_health(self) -> None:
        """Tell the health service (grpc.health.v1) what is ready.

        Its names are our services, `` for the whole server, and NAME and NAME/VERSION of each
        model, which become NOT_SERVING when it is unloaded. Digits need the default model.
        """
        inference = self._inference
        ready = inference.readiness().ready
        digits = ready and bool(inference.repository.versions(inference.default_model))
        models = {name: True for m in inference.repository.loaded for name in _names(m)}
        services = dict.fromkeys(("", *_SERVICES), ready) | {_DIGITS: digits}
        self._health.publish(services | models)

    async def stop(self, timeout: float) -> None:
        """Report not ready, refuse new calls, let those in flight finish in `timeout` seconds."""
        self._health.stop()
        self._calls.stop()
        await self._server.stop(timeout)


def _reflection() -> dict[str, Rpc]:
    """The methods of reflection v1alpha and v1, whose messages are the same on the wire."""
    names = (*_SERVICES, health_service.DESCRIPTOR.full_name, _REFLECTION.full_name)

    @cache
    def servicer() -> Any:
        from grpc_reflection.v1alpha import reflection  # it needs grpcio, which takes 8 MB

        return reflection.aio.ReflectionServicer((*names, _REFLECTION_V1))

    async def answer(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        ready = await asyncio.to_thread(servicer)
        async for response in ready.ServerReflectionInfo(requests, None):
            yield response

    # Clients that ask for the description of v1 find it in the pool that the servicer reads.
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file).replace("v1alpha", "v1")
    content = text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString()
    reflection_pb2.DESCRIPTOR.pool.AddSerializedFile(content)

    methods = rpcs(
        _REFLECTION, {"ServerReflectionInfo": Streaming("reflection", answer, scope="read")}
    )
    (rpc,) = methods.values()
    path = f"/{_REFLECTION_V1}/ServerReflectionInfo"
    return methods | {path: rpc._replace(method=Streaming("reflection_v1", answer, scope="read"))}


def _names(model: ServedModel) -> tuple[str, str]:
    return model.name, f"{model.name}/{model.version}"
