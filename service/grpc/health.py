"""grpc.health.v1.Health: which services and models are ready.

Source: the gRPC Health Checking Protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2 as pb

from service.core.errors import NotFound, excerpt
from service.grpc.answering import Call, Method, Streaming, Unary

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Health"]


class Health:
    """Answers Check, List and Watch. Lives on one event loop."""

    def __init__(self) -> None:
        self._ready: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._stopped = False

    def stop(self) -> None:
        """Set every service to not ready, report that to all watchers and end their calls."""
        self._stopped = True
        self.publish({})

    def publish(self, ready: dict[str, bool]) -> None:
        """Set the state of all services; a known service that is missing becomes not ready."""
        self._ready = dict.fromkeys(self._ready, False) | ready
        self._changed.set()
        self._changed = asyncio.Event()

    def methods(self) -> dict[str, Method]:
        """The methods by their names in health.proto."""
        return {
            "Check": Unary("health_check", self._check, scope=None),
            "List": Unary(
                "health_list", self._list, scope=None
            ),  # older releases of the proto lack it
            "Watch": Streaming("health_watch", self._watch, scope=None),
        }

    async def _check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        if request.service not in self._ready:
            raise NotFound(f"There is no service or model '{excerpt(request.service)}'.")
        return self._response(request.service)

    async def _list(self, request: object, call: Call) -> pb.HealthListResponse:
        return pb.HealthListResponse(statuses={name: self._response(name) for name in self._ready})

    async def _watch(
        self, requests: AsyncIterator[pb.HealthCheckRequest]
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        async for request in requests:
            reported = None
            while True:
                changed = self._changed
                state = self._response(request.service)
                if state != reported:
                    reported = state
                    yield state  # and check again: the state may have changed meanwhile
                elif self._stopped:
                    return
                else:
                    await changed.wait()

    def _response(self, name: str) -> pb.HealthCheckResponse:
        states = pb.HealthCheckResponse
        if name not in self._ready:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._ready[name] else states.NOT_SERVING)
