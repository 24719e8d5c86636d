"""The gRPC front of a worker: a grpc.aio server on the worker's own event loop."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.grpc import digits
from service.grpc.administration import AdministrationService
from service.grpc.calls import MESSAGE_SLACK, Calls
from service.grpc.open_inference import OpenInference
from service.observe.requests import RequestRecorder
from service.operations import Operations
from service.repository.repository import ServedModel
from service.settings import Settings
from service.stubs.inference import inference_pb2

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_SERVICES = (digits.DESCRIPTOR.full_name, _INFERENCE.full_name)


class GrpcFront:
    """All gRPC services of one worker, on a port that the workers share."""

    def __init__(
        self, operations: Operations, recorder: RequestRecorder, settings: Settings
    ) -> None:
        self._operations = operations
        self._server = grpc.aio.server(
            options=[
                # Every worker binds the port; the kernel spreads connections over them.
                ("grpc.so_reuseport", 1),
                # Up to twice the limit a message is refused by us, with the limit's name;
                # beyond it gRPC itself refuses, before the message is read.
                (
                    "grpc.max_receive_message_length",
                    2 * (settings.max_request_bytes + MESSAGE_SLACK),
                ),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )
        calls = Calls(recorder, settings.max_request_bytes, settings.max_stream_requests)
        methods = OpenInference(operations).methods()
        methods |= AdministrationService(operations.administration).methods()
        self._server.add_generic_rpc_handlers(
            (digits.service(operations, calls), calls.service(_INFERENCE, methods))
        )
        self._health = health.aio.HealthServicer()
        self._publishing = asyncio.Lock()
        self._published: set[str] = set()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server.add_insecure_port(f"{host}:{settings.grpc_port}")

    async def start(self) -> None:
        """Accept calls."""
        await self.publish_health()
        await self._server.start()

    async def publish_health(self) -> None:
        """Tell the health service (grpc.health.v1) what is ready.

        Its service names are ours, `` for the server as a whole, and of each model NAME and
        NAME/VERSION, which are NOT_SERVING once they are unloaded.
        """
        states = health_pb2.HealthCheckResponse
        async with self._publishing:
            operations = self._operations
            ready = operations.readiness().ready
            serving = {name for m in operations.repository.loaded for name in _names(m)}
            self._published |= serving
            for name in ("", *_SERVICES):
                await self._health.set(name, states.SERVING if ready else states.NOT_SERVING)
            for name in self._published:
                await self._health.set(
                    name, states.SERVING if name in serving else states.NOT_SERVING
                )

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; give those in flight `timeout` seconds to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(timeout)


def _names(model: ServedModel) -> tuple[str, str]:
    return model.name, f"{model.name}/{model.version}"
