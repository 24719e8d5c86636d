"""The gRPC front of a worker: a grpc.aio server on the worker's own event loop."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service.grpc.calls import MESSAGE_SLACK, Calls
from service.grpc.digits import DigitClassifier
from service.grpc.open_inference import InferenceService
from service.observe.requests import RequestRecorder
from service.operations import Operations
from service.settings import Settings
from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from service.stubs.inference import inference_pb2, inference_pb2_grpc

_SERVICES = (
    "",  # the server as a whole
    digits_pb2.DESCRIPTOR.services_by_name["DigitClassifier"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


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
        calls = Calls(recorder, settings.max_request_bytes)
        digits_pb2_grpc.add_DigitClassifierServicer_to_server(  # type: ignore[no-untyped-call]
            DigitClassifier(operations, calls), self._server
        )
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceService(operations, calls), self._server
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server.add_insecure_port(f"{host}:{settings.grpc_port}")

    async def start(self) -> None:
        """Accept calls."""
        await self.publish_health()
        await self._server.start()

    async def publish_health(self) -> None:
        """Tell the health service whether requests are welcome (grpc.health.v1)."""
        states = health_pb2.HealthCheckResponse
        ready = self._operations.readiness().ready
        for name in _SERVICES:
            await self._health.set(name, states.SERVING if ready else states.NOT_SERVING)

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; give those in flight `timeout` seconds to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(timeout)
